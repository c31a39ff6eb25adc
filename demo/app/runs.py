"""The runs in a folder: which of them learned from these votes, which has the newest weights, what it waits for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from diffalign import prompts
from diffalign.errors import DiffalignError
from diffalign.folders import checkpoint
from diffalign.folders.runfolder import RunFolder
from diffalign.launching.launch import own_settings
from diffalign.preferences import Store
from diffalign.training.voted import Ballots


@dataclass(frozen=True)
class Runs:
    """Of all runs in a folder, those that train a model of this name from the votes of one store."""

    folder: Path
    model: str
    votes: str

    def newest(self, since: float = 0.0) -> RunFolder | None:
        """The run whose weights were written last, and later than `since` (seconds since 1970)."""
        written = [(_written(run), run) for run in self.folder.glob("*") if (run / "config.yaml").is_file()]
        for seconds, run in sorted(written, reverse=True):
            if seconds > since and self._fits(RunFolder(run)):
                return RunFolder(run)
        return None

    def _fits(self, run: RunFolder) -> bool:
        with suppress(DiffalignError, OSError):
            told = run.config()
            return Path(str(told.get("model"))).name == self.model and self._ours(told.get("preferences"))
        return False

    def _ours(self, votes: str | None) -> bool:
        if votes is None or "://" in votes:
            return votes == self.votes
        return Path(votes).resolve() == Path(self.votes).resolve()


def weights(run: RunFolder) -> Path | None:
    """The newest weights of a run: the finished LoRA, else the one that people are shown, else a checkpoint."""
    done, live = run.path / "lora", shown(run)
    found = [path for path in (done, *live[-1:]) if path.is_dir()]
    return found[0] if found else checkpoint.latest(run.checkpoints)


def shown(run: RunFolder) -> list[Path]:
    """What a run with people has shown them, a folder a round."""
    return sorted((run.path / "live").glob("round-*"))


def waits(run: RunFolder) -> bool:
    """Whether a run has shown more rounds than it has learned from."""
    return len(shown(run)) > len(run.rows())


def lacking(run: RunFolder, store: Store, label: str) -> int:
    """How many more votes on the version of this label a run waits for."""
    if not waits(run):
        return 0
    settings = own_settings(run)
    heldout = prompts.load(settings.heldout_prompts)[: settings.heldout_limit]
    ballots = Ballots(store, Path(settings.model).name, settings.voters, heldout)
    return max(0, settings.prompts_per_round - len(ballots.pairs(label)))


def _written(run: Path) -> float:
    path = weights(RunFolder(run))
    return path.stat().st_mtime if path else 0.0
