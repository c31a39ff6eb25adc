"""A search that runs in a thread while somebody looks: every sample it scores is shown, and it may be stopped."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from diffalign import registry
from diffalign.errors import DiffalignError
from diffalign.rewarding.compose import Composite
from diffalign.search import Search, Task
from diffalign_demo.app.artist import Artist

REWARDS: dict[str, tuple[str, dict[str, str]]] = {
    "3D (right) or flat (left)": ("emoji_clip", {"score": "style"}),
    "Shows what the prompt says": ("emoji_clip", {"score": "match"}),
    "Detailed (right) or plain (left)": ("jpeg_incompressibility", {}),
}
"""label -> reward; a negative weight asks for the opposite."""
RATE, RATE_DIM = 5.0, 4 * 64 * 64
"""ReNO's published rate, and the noise it is for: with fewer numbers noise is shorter, by the root of them."""
METHODS: dict[str, Callable[[int, int], Search]] = {
    "ReNO: follows the reward's gradient": lambda n, dim: registry.search("reno")(
        iterations=n, lr=RATE * min(1.0, math.sqrt(dim / RATE_DIM))
    ),
    "Best of N: draws again and again": lambda n, dim: registry.search("best_of_n")(n=n),
    "ZO-RankSGD: climbs by comparing": lambda n, dim: registry.search("zo_rank_sgd")(rounds=max(1, n // 14)),
}
"""label -> search, of so many samples, for noise of so many numbers."""


class Stopped(Exception):
    """Somebody pressed stop."""


@dataclass
class Frame:
    """One scored sample: its number, the rewards of it, the best total so far, and the picture of the best."""

    number: int
    scores: dict[str, float]
    best: float
    picture: Tensor


@dataclass
class Watched(Task):
    """A task that shows every sample that was scored, and ends when it is told to."""

    show: Callable[[Tensor, dict[str, float]], None] = field(default=lambda latents, scores: None)

    def offer(self, owner: Tensor, latents: Tensor, noise: Tensor, scores: dict[str, Tensor]) -> None:
        """See Task."""
        super().offer(owner, latents, noise, scores)
        for row in range(len(owner)):
            self.show(
                latents[row].detach(), {name: float(told[row].detach()) for name, told in scores.items()}
            )


class Improvement:
    """One search for one prompt: iterating over it gives its frames as they come.

    ended: how it came to its end, once it has: "done" or "stopped".
    """

    def __init__(self, artist: Artist, prompt: str, method: Search, weights: Mapping[str, float]) -> None:
        self.artist, self.prompt, self.method = artist, prompt, method
        self.reward = composed({label: weight for label, weight in weights.items() if weight})
        self._frames: queue.Queue[Frame | Exception | None] = queue.Queue(maxsize=4)
        self._stopped, self._left = threading.Event(), threading.Event()
        self._count, self.ended = 0, ""
        self._task: Watched | None = None

    def stop(self) -> None:
        """End after the sample that is being computed."""
        self._stopped.set()

    def __iter__(self) -> Iterator[Frame]:
        threading.Thread(target=self._run, name="search", daemon=True).start()
        try:
            while (frame := self._frames.get()) is not None:
                if isinstance(frame, Exception):
                    raise frame
                yield frame
        finally:
            self.stop()
            self._left.set()

    def _run(self) -> None:
        """The whole search, in its thread; after every sample others may use the model."""
        try:
            with self.artist.turns:
                policy = self.artist.policy
                policy.check_prompts([self.prompt])
                rule = self.method.default_rule(policy)
                self._task = Watched(policy, self.reward, [self.prompt], rule, batch=4, show=self._show)
                self.method.run(self._task)
            self.ended = "done"
            self._put(None)
        except Stopped:
            self.ended = "stopped"
            self._put(None)
        except Exception as error:
            self._put(error)

    @torch.no_grad()
    def _show(self, latents: Tensor, scores: dict[str, float]) -> None:
        assert self._task is not None
        self._count += 1
        best = self._task.best
        picture = self.artist.policy.decode(best.best[0]["latents"][None])[0].cpu().clamp(0, 1)
        self._put(Frame(self._count, scores, best.total(0), picture))
        if self._stopped.is_set():
            raise Stopped
        self.artist.turns.let()

    def _put(self, frame: Frame | Exception | None) -> None:
        """Hand a frame over; where nobody takes it any more, the search ends."""
        while True:
            try:
                return self._frames.put(frame, timeout=1)
            except queue.Full:
                if self._left.is_set():
                    return None


def composed(weights: Mapping[str, float]) -> Composite:
    """The weighted sum of some of REWARDS."""
    if not weights:
        raise DiffalignError("all weights are 0, so nothing can get better; move one of the sliders.")
    return Composite({label: _reward(label) for label in weights}, dict(weights))


@cache
def _reward(label: str) -> Any:
    name, arguments = REWARDS[label]
    return registry.reward(name, **arguments)
