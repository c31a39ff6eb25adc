"""The runs in a folder: which of them learned from these votes, which has the newest weights, what it waits for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from diffalign import prompts
from diffalign.errors import DiffalignError
from diffalign.folders import checkpoint
from diffalign.folders.runfolder import RunFolder
from diffalign.launching import build
from diffalign.launching.launch import own_settings
from diffalign.preferences import Store
from diffalign.training.live import Live
from diffalign.training.voted import Voters


@dataclass(frozen=True)
class Runs:
    """Of all runs in a folder, those that train a model of this name from the votes of one store."""

    folder: Path
    model: str
    votes: str

    def newest(self, since: float = 0.0) -> RunFolder | None:
        """One that waits for votes; else the one whose weights were written last, later than `since` (Unix time)."""
        found = [run for run in map(RunFolder, self.folder.glob("*")) if self._fits(run)]
        written = {run: _written(run) for run in found}
        found = [run for run in found if written[run] > since or waits(run)]
        return max(found, key=lambda run: (waits(run), written[run]), default=None)

    def _fits(self, run: RunFolder) -> bool:
        with suppress(DiffalignError, OSError):
            if not (run.path / "config.yaml").is_file():
                return False
            told = run.config()
            return Path(str(told.get("model"))).name == self.model and self._ours(told.get("preferences"))
        return False

    def _ours(self, votes: str | None) -> bool:
        if votes is None or "://" in votes:
            return votes == self.votes
        return Path(votes).resolve() == Path(self.votes).resolve()


def weights(run: RunFolder) -> Path | None:
    """The newest weights of a run: the finished LoRA, else the one that people are shown, else a checkpoint."""
    done, shown = run.path / "lora", live(run).rounds()
    found = [path for path in (done, *shown[-1:]) if path.is_dir()]
    return found[0] if found else checkpoint.latest(run.checkpoints)


def live(run: RunFolder) -> Live:
    """What a run with people shows them."""
    return Live(run.path / "live")


def waits(run: RunFolder) -> bool:
    """Whether a run waits for votes on what it has shown last."""
    return live(run).waits


def lacking(run: RunFolder, store: Store, label: str) -> tuple[int, Voters]:
    """How many more votes on the version of this label a run waits for, and whose; nobody named: anybody's."""
    if not waits(run):
        return 0, {}
    settings = own_settings(run)
    heldout = prompts.load(settings.heldout_prompts)[: settings.heldout_limit]
    pairs = build.ballots(settings, store, heldout).pairs(label)
    return max(0, settings.prompts_per_round - len(pairs)), settings.voters


def _written(run: RunFolder) -> float:
    with suppress(OSError):
        path = weights(run)
        return path.stat().st_mtime if path else 0.0
    return 0.0
