"""Progress bars of runs and searches; nothing where nobody looks."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Shown:
    """A context manager around bars; silent unless stderr is a terminal of the main process."""

    def __init__(self, *, main: bool) -> None:
        self.bars = Progress(
            TextColumn("{task.description:<11}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not (main and sys.stderr.isatty()),
            transient=True,
        )

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.bars.stop()


class Bars(Shown):
    """Two bars: rounds, and the phase of the one under way.

    totals: phase -> latents x steps it takes; a phase that goes on longer starts over.
    """

    def __init__(self, rounds: int, totals: Mapping[str, int], *, main: bool = True) -> None:
        super().__init__(main=main)
        self.totals = totals
        self.rounds = self.bars.add_task("rounds", total=rounds, note="")
        self.phase = self.bars.add_task("", total=None, note="")
        self.current = ""

    def advance(self, phase: str, n: int) -> None:
        """n more latents went one step further in a phase of the round."""
        total = self.totals.get(phase)
        done = self.bars.tasks[self.phase].completed
        if phase != self.current or (total and done >= total):
            self.current = phase
            self.bars.reset(self.phase, total=total, description=phase)
        self.bars.advance(self.phase, n)

    def finished(self, row: Mapping[str, Any]) -> None:
        """A round is over: show how far the run is, and its rewards."""
        self.bars.update(self.rounds, completed=row["round"] + 1, note=note(row))


class SearchBars(Shown):
    """One bar: finished prompts, and how good those under way are by now."""

    def __init__(self, prompts: int, *, main: bool = True) -> None:
        super().__init__(main=main)
        self.bar = self.bars.add_task("prompts", total=prompts, note="")
        self.best: dict[int, float] = {}
        self.scored = 0

    def hear(self, number: int, best: float) -> None:
        """One more sample of a prompt was scored, and this is its best reward."""
        self.best[number], self.scored = best, self.scored + 1
        self.bars.update(self.bar, note=f"best reward {self.mean:.4g}, {self.scored} pictures scored")

    def finished(self, number: int) -> None:
        """A prompt is done."""
        self.bars.advance(self.bar)

    @property
    def mean(self) -> float:
        """The mean of the prompts' best rewards, of those that have one."""
        known = [best for best in self.best.values() if math.isfinite(best)]
        return sum(known) / len(known) if known else math.nan


def note(row: Mapping[str, Any]) -> str:
    """The rewards of a round in a few words."""
    parts = [f"reward {row['reward/total/mean']:.4g}"] if "reward/total/mean" in row else []
    if (gain := row.get("heldout/gain_sd")) is not None:
        parts.append(f"held-out {gain:+.2f} sd")
    return ", ".join(parts)


def quiet_libraries() -> None:
    """No loading bars of diffusers and transformers where nobody looks."""
    if not sys.stderr.isatty():
        from diffusers.utils.logging import disable_progress_bar as quiet_diffusers
        from transformers.utils.logging import disable_progress_bar as quiet_transformers

        quiet_diffusers()
        quiet_transformers()
