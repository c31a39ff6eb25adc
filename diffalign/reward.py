"""What a reward is. A plain function `(images, prompts) -> scores` is one.

Pictures are float32 in [0, 1], (B, 3, H, W), or video (B, F, 3, H, W); higher scores are better.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from diffalign.errors import DiffalignError, RunError, unknown

__all__ = [
    "AnyReward",
    "DiffalignError",
    "GroupReward",
    "Reward",
    "RunError",
    "Scores",
    "SetReward",
    "capability",
    "kind",
    "once",
    "score",
    "sharing",
    "unknown",
]

T = TypeVar("T")
_shared: ContextVar[dict[Hashable, tuple[Tensor, Any]] | None] = ContextVar("shared", default=None)


@dataclass(frozen=True)
class Scores:
    """value (B,), named parts of it (B,) each, and how uncertain the reward is (B,) or None."""

    value: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    uncertainty: Tensor | None = None


@runtime_checkable
class Reward(Protocol):
    """Scores every picture by itself: `(images, prompts, **metadata) -> (B,) | Scores`.

    It may declare `differentiable`, `video` or `needs_reference` (True where it can or must), `remote` or
    `cpu_only` (True where it leaves the policy's device alone); all default to False. It may have
    `prepare(prompts)` to compute text features once per prompt.
    """

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor | Scores:
        """Scores (B,) of pictures (B, 3, H, W) for their prompts."""
        ...


@runtime_checkable
class GroupReward(Protocol):
    """Sees all G pictures of one prompt and returns (G,)."""

    def score_group(self, images: Tensor, prompt: str, **metadata: Any) -> Tensor:
        """Scores (G,) of pictures (G, 3, H, W) of one prompt."""
        ...


@runtime_checkable
class SetReward(Protocol):
    """Scores a whole set of pictures: a single number."""

    def score_set(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor:
        """One number for pictures (B, 3, H, W)."""
        ...


AnyReward = Callable[..., Any]


def capability(reward: object, name: str) -> bool:
    """Whether a reward declares a capability (see `Reward`)."""
    return bool(getattr(reward, name, False))


def kind(reward: object) -> Literal["picture", "group", "set"]:
    """Which protocol a reward, or the class of one, follows: `Reward`, `GroupReward` or `SetReward`."""
    family = reward if isinstance(reward, type) else type(reward)
    if hasattr(reward, "score_group"):
        return "group"
    alone = any("__call__" in vars(base) for base in family.__mro__)
    return "set" if hasattr(reward, "score_set") and not alone else "picture"


@contextmanager
def sharing() -> Iterator[None]:
    """Within this block, `once` computes what several rewards need of the same pictures a single time."""
    token = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(token)


def once(key: Hashable, images: Tensor, compute: Callable[[], T]) -> T:
    """`compute()`, or its earlier result for the same key and the same pictures in this `sharing` block."""
    seen = _shared.get()
    if seen is None:
        return compute()
    place = (key, id(images), images._version, torch.is_grad_enabled())
    if place not in seen:
        seen[place] = (images, compute())  # kept, so that no other tensor gets the same id
    result: T = seen[place][1]
    return result


def score(reward: AnyReward, images: Tensor, prompts: Sequence[str], label: str = "reward") -> Scores:
    """Call a reward and check what it returns: (B,) finite numbers, or an error that names it."""
    result = reward(images, prompts)
    scores = result if isinstance(result, Scores) else Scores(torch.as_tensor(result))
    if scores.value.shape != (len(prompts),):
        raise RunError(
            f"reward {label!r} returned shape {tuple(scores.value.shape)} for {len(prompts)} pictures; "
            f"it must return one score a picture, shape ({len(prompts)},)."
        )
    bad = (~scores.value.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise RunError(
            f"reward {label!r} returned {scores.value[bad[0]].item()} for {len(bad)} of {len(prompts)} "
            f"pictures, the first for {prompts[bad[0]]!r}. Rewards must be finite: fix it, then resume."
        )
    return scores
