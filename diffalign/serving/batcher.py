"""Scores what several clients ask for in common batches, in one thread, and hands each its own.

Dimensions: n items of a job, B of a batch.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffalign.errors import DiffalignError, RunError
from diffalign.reward import AnyReward, Scores, score
from diffalign.serving.wire import to_floats

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """uint8 pictures (n, ...) of one client with their prompts, and where their scores go."""

    images: Tensor
    prompts: Sequence[str]
    result: Future[Scores] = field(default_factory=Future)

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass
class Batcher:
    """Merges jobs that come within `wait` seconds into batches of at most `items`; 0 merges nothing.

    Merging can move a score by float noise, as kernels depend on the size of the batch. How many
    jobs wait is bounded by whoever calls `submit`.
    """

    reward: AnyReward
    label: str
    items: int
    wait: float = 0.005
    device: torch.device | str = "cpu"
    batches: int = field(default=0, init=False)
    scored: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="scoring", daemon=True).start()

    def submit(self, job: Job) -> Future[Scores]:
        """The job's scores, once they are there; cancel it to take it back."""
        self._jobs.put(job)
        return job.result

    @property
    def queued(self) -> int:
        """How many jobs nobody has begun with."""
        return self._jobs.qsize()

    def _work(self) -> None:
        while True:
            jobs = [job for job in self._gather() if job.result.set_running_or_notify_cancel()]
            for batch in packed(jobs, self.items):
                self._answer(batch)

    def _gather(self) -> list[Job]:
        """The next job, and those that come in time while a batch is not full."""
        found, end = [self._jobs.get()], time.monotonic() + self.wait
        while self.wait and sum(map(len, found)) < self.items:
            try:
                found.append(self._jobs.get(timeout=max(0.0, end - time.monotonic())))
            except queue.Empty:
                break
        return found

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Score some jobs together; where that fails, each by itself, so that only the bad ones fail."""
        try:
            each = self._scores(jobs)
        except BaseException as error:  # a reward that calls sys.exit must not end the thread
            if len(jobs) == 1:
                jobs[0].result.set_exception(self._failure(error))
            else:
                for job in jobs:
                    self._answer([job])
        else:
            for job, scores in zip(jobs, each, strict=True):
                job.result.set_result(scores)

    def _failure(self, error: BaseException) -> DiffalignError:
        """What the client hears: that its input is bad, or that the reward failed; the log has the traceback."""
        if isinstance(error, DiffalignError):
            return error
        logger.error("reward %r failed", self.label, exc_info=error)
        return RunError(f"reward {self.label!r} failed: {type(error).__name__}: {error}")

    @torch.no_grad()
    def _scores(self, jobs: Sequence[Job]) -> list[Scores]:
        """One call of the reward, split again."""
        images = to_floats(torch.cat([job.images for job in jobs]).to(self.device))
        self.batches, self.scored = self.batches + 1, self.scored + len(images)
        scores = score(self.reward, images, [prompt for job in jobs for prompt in job.prompts], self.label)
        return split(scores, [len(job) for job in jobs])


def packed(jobs: Sequence[Job], items: int) -> Iterator[list[Job]]:
    """The jobs in batches of pictures of one size, at most `items` in each (more if one job has more)."""
    filling: dict[torch.Size, list[Job]] = {}
    for job in jobs:
        size = job.images.shape[1:]
        if sum(map(len, filling.get(size, []))) + len(job) > items and size in filling:
            yield filling.pop(size)
        filling.setdefault(size, []).append(job)
    yield from filling.values()


def split(scores: Scores, sizes: Sequence[int]) -> list[Scores]:
    """The scores of consecutive pieces of a batch."""
    columns = {**scores.parts, **({} if scores.uncertainty is None else {"uncertainty": scores.uncertainty})}
    for name, column in columns.items():
        if column.shape != (sum(sizes),):
            raise RunError(f"{name!r} has shape {tuple(column.shape)} for {sum(sizes)} pictures.")
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    return [_rows(scores, slice(start, start + n)) for start, n in zip(starts, sizes, strict=True)]


def _rows(scores: Scores, rows: slice) -> Scores:
    parts = {name: part[rows] for name, part in scores.parts.items()}
    return Scores(scores.value[rows], parts, None if scores.uncertainty is None else scores.uncertainty[rows])
