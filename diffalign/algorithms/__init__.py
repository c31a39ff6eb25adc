"""One file an algorithm. A new one needs no other file to change: see docs/algorithms.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from diffalign.run import Run
from diffalign.trajectory import Trajectory


class Algorithm(Protocol):
    """A dataclass whose fields are its hyper-parameters.

    One minibatch is one optimizer step, one yielded loss is one backward; the losses of a minibatch
    add up to its mean loss.
    """

    def collect(self, run: Run) -> Trajectory:
        """Sample and score this round's trajectories, and add what the losses need."""
        ...

    def minibatches(self, run: Run, batch: Trajectory) -> Iterator[Trajectory]:
        """The round's optimizer steps."""
        ...

    def losses(self, run: Run, batch: Trajectory) -> Iterator[Tensor]:
        """Scalars to call backward on."""
        ...
