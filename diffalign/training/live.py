"""Where a run with people shows what it has become, and says that it waits for their votes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffalign.folders.whole import appearing, remove
from diffalign.run import Run

ALIVE = 30.0
"""Seconds after which a sign of life is too old: the run was killed while it waited."""


@dataclass(frozen=True)
class Live:
    """`folder` of a run: the weights of every round that was shown, each a folder that appears whole."""

    folder: Path

    def rounds(self) -> list[Path]:
        """What has been shown, the newest last."""
        return sorted(self.folder.glob("round-*"))

    def show(self, run: Run) -> None:
        """Write the policy of this round, in place of what the run showed before it was killed and resumed."""
        own = self.folder / f"round-{run.round:04d}"
        for later in self.rounds():
            if later.name > own.name:
                remove(later)
        with appearing(own) as part:
            run.policy.save(part)

    @contextmanager
    def waiting(self) -> Iterator[Path]:
        """While the run waits: a file that it touches as often as it looks for votes."""
        sign = self.folder / "waiting"
        sign.touch()
        try:
            yield sign
        finally:
            sign.unlink(missing_ok=True)

    @property
    def waits(self) -> bool:
        """Whether a run waits for votes on the newest round."""
        try:
            return time.time() - (self.folder / "waiting").stat().st_mtime < ALIVE
        except OSError:
            return False
