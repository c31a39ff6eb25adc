"""Scoring while sampling goes on, where the two do not share a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Generic, TypeVar

import torch

from diffalign.reward import AnyReward, capability

T = TypeVar("T")


def apart(rewards: Iterable[AnyReward], device: torch.device) -> bool:
    """Whether none of the rewards runs on the policy's device: they are `remote`, or `cpu_only` beside a GPU."""
    enough = ("remote",) if device.type == "cpu" else ("remote", "cpu_only")
    return all(any(capability(reward, name) for name in enough) for reward in rewards)


class Ahead(Generic[T], AbstractContextManager["Ahead[T]"]):
    """Makes calls one after the other in a thread of its own, while its owner prepares the next one.

    Handing in a call waits for the one before, so little piles up, and an error surfaces there at
    the latest. Leaving the block with an error does not wait for a call under way.
    """

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self._last: Future[T] | None = None
        self._results: list[T] = []

    def call(self, action: Callable[[], T]) -> None:
        """Begin with a call as soon as the one before is done."""
        self._settle()
        self._last = self._worker.submit(action)

    def results(self) -> list[T]:
        """What the calls returned, in their order."""
        self._settle()
        return self._results

    def _settle(self) -> None:
        if self._last is not None:
            last, self._last = self._last, None
            self._results.append(last.result())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.shutdown(wait=error is None, cancel_futures=True)
