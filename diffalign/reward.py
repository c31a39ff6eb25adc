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

from diffalign.errors import DiffalignError, RunError, told, unknown

__all__ = [
    "AnyReward",
    "DiffalignError",
    "GroupReward",
    "NoisyReward",
    "Reward",
    "RunError",
    "Scores",
    "SetReward",
    "capability",
    "kind",
    "once",
    "refuse_video",
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


@runtime_checkable
class NoisyReward(Protocol):
    """Scores what is still noisy, so that it can guide while a picture is made (`diffalign.guided`)."""

    def score_noisy(self, latents: Tensor, prompts: Sequence[str], signal: Tensor, noise: Tensor) -> Tensor:
        """Scores (B,), differentiable, of latents signal * x0 + noise * eps (B, ...); levels (B,)."""
        ...


AnyReward = Callable[..., Any]


def capability(reward: object, name: str) -> bool:
    """Whether a reward declares a capability (see `Reward`)."""
    reward = getattr(reward, "func", reward)  # of a function whose arguments are bound
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


def score(
    reward: AnyReward, images: Tensor, prompts: Sequence[str], label: str = "reward", *, finite: bool = True
) -> Scores:
    """Call a reward and check what it returns: (B,) finite numbers, or an error that names it.

    finite=False: numbers that are not finite are let through.
    """
    refuse_video(reward, images, label)
    scores = _asked(reward, images, prompts, label)
    named = {label: scores.value} | {f"{label}.{part}": values for part, values in scores.parts.items()}
    for name, values in named.items():
        if values.shape != (len(prompts),):
            raise RunError(
                f"reward {name!r} returned shape {tuple(values.shape)} for {len(prompts)} pictures; "
                f"it must return one score a picture, shape ({len(prompts)},)."
            )
    bad = (~scores.value.isfinite()).nonzero().flatten().tolist()
    if bad and finite:
        raise RunError(
            f"reward {label!r} returned {scores.value[bad[0]].item()} for {len(bad)} of {len(prompts)} "
            f"pictures, the first for {prompts[bad[0]]!r}. Rewards must be finite: fix it, then resume."
        )
    return scores


def refuse_video(reward: object, images: Tensor, label: str) -> None:
    """A reward of pictures has nothing to say of video (B, F, 3, H, W)."""
    if images.ndim == 5 and not capability(reward, "video"):
        raise DiffalignError(
            f"reward {label!r} judges pictures, and the model makes videos of {images.shape[1]} frames. "
            "Lift it with the reward `frames`: {name: frames, reward: ...}, or take one that judges video."
        )


def _asked(reward: AnyReward, images: Tensor, prompts: Sequence[str], label: str) -> Scores:
    """What the reward returns, as Scores; what goes wrong in it becomes an error that names it."""
    if isinstance(reward, NoisyReward) and not callable(reward):
        raise DiffalignError(
            f"reward {label!r} judges noisy latents and no pictures: it can guide (search nrg), and not score."
        )
    try:
        result = reward(images, prompts)
    except (DiffalignError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise RunError(f"reward {label!r} raised {told(error)}. Fix it, then resume.") from error
    try:
        given = result if isinstance(result, Scores) else Scores(result)
        parts = {name: torch.as_tensor(values) for name, values in given.parts.items()}
        return Scores(torch.as_tensor(given.value), parts, given.uncertainty)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"reward {label!r} returned {type(result).__name__} {result!r:.60}; it must return numbers, one a "
            f"picture, shape ({len(prompts)},), or Scores."
        ) from error
