"""What a reward is. A plain function `(images, prompts) -> scores` is one.

Pictures are float32 in [0, 1], (B, 3, H, W), or video (B, F, 3, H, W); higher scores are better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffalign.errors import DiffalignError, RunError, told


@dataclass(frozen=True)
class Scores:
    """value (B,), named parts of it (B,) each, and how uncertain the reward is (B,) or None."""

    value: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    uncertainty: Tensor | None = None


@runtime_checkable
class Reward(Protocol):
    """Scores every picture by itself: `(images, prompts, **metadata) -> (B,) | Scores`.

    It may declare `differentiable`, `video` or `needs_reference` (True where it can or must; all
    default to False), and may have `prepare(prompts)` to compute text features once per prompt.
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
    """Whether a reward declares a capability (`differentiable`, `video`, `needs_reference`)."""
    reward = getattr(reward, "func", reward)  # of a function whose arguments are bound
    return bool(getattr(reward, name, False))


def score(reward: AnyReward, images: Tensor, prompts: Sequence[str], label: str = "reward") -> Scores:
    """Call a reward and check what it returns: (B,) finite numbers, or an error that names it."""
    if images.ndim == 5 and not capability(reward, "video"):
        raise DiffalignError(
            f"reward {label!r} scores pictures, and this model makes video {tuple(images.shape)}. Take a reward "
            "that declares `video = True`."
        )
    scores = _asked(reward, images, prompts, label)
    named = {label: scores.value} | {f"{label}.{part}": values for part, values in scores.parts.items()}
    for name, values in named.items():
        if values.shape != (len(prompts),):
            raise RunError(
                f"reward {name!r} returned shape {tuple(values.shape)} for {len(prompts)} pictures; "
                f"it must return one score a picture, shape ({len(prompts)},)."
            )
    bad = (~scores.value.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise RunError(
            f"reward {label!r} returned {scores.value[bad[0]].item()} for {len(bad)} of {len(prompts)} "
            f"pictures, the first for {prompts[bad[0]]!r}. Rewards must be finite: fix it, then resume."
        )
    return scores


def _asked(reward: AnyReward, images: Tensor, prompts: Sequence[str], label: str) -> Scores:
    """What the reward returns, as Scores; what goes wrong in it becomes an error that names it."""
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


@dataclass(frozen=True)
class WeightedSum:
    """The weighted sum of several rewards, with each one's own scores as parts."""

    video: ClassVar[bool] = True  # as far as its members are, which `score` sees to
    rewards: Mapping[str, tuple[AnyReward, float]]

    @property
    def differentiable(self) -> bool:
        """All of them are."""
        return all(capability(reward, "differentiable") for reward, _ in self.rewards.values())

    def prepare(self, prompts: Sequence[str]) -> None:
        """Let every reward that can prepare itself for these prompts."""
        for reward, _ in self.rewards.values():
            if hasattr(reward, "prepare"):
                reward.prepare(prompts)

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Scores:
        """The sum as value (B,), the single rewards as parts."""
        each = {label: score(reward, images, prompts, label) for label, (reward, _) in self.rewards.items()}
        parts = {label: scores.value.float().to(images.device) for label, scores in each.items()}
        for label, scores in each.items():
            parts |= {f"{label}.{name}": value for name, value in scores.parts.items()}
        total = sum(self.rewards[label][1] * parts[label] for label in self.rewards)
        return Scores(torch.as_tensor(total), parts)
