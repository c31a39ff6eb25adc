"""Several rewards asked about the same pictures.

Dimensions: B pictures, G of one group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffalign.credit import groups
from diffalign.errors import RunError
from diffalign.reward import AnyReward, Scores, kind, refuse_video, score, sharing


def measure(
    rewards: Mapping[str, AnyReward],
    images: Tensor,
    prompts: Sequence[str],
    group: Tensor | None = None,
    *,
    finite: bool = True,
) -> dict[str, Tensor]:
    """Scores (B,) of every reward under its label, then their parts as `label.part`, in float32.

    Features that several of them need are computed once. group (B,): which pictures belong together;
    without it those of one prompt do. finite=False lets numbers through that are not finite.
    """
    with sharing():
        each = {
            label: _scores(reward, images, prompts, label, group, finite) for label, reward in rewards.items()
        }
    found = {label: scores.value for label, scores in each.items()}
    for label, scores in each.items():
        found |= {f"{label}.{name}": value for name, value in scores.parts.items()}
        found |= {} if scores.uncertainty is None else {f"{label}.uncertainty": scores.uncertainty}
    return {name: value.float().to(images.device) for name, value in found.items()}


def _scores(
    reward: AnyReward, images: Tensor, prompts: Sequence[str], label: str, group: Tensor | None, finite: bool
) -> Scores:
    refuse_video(reward, images, label)
    if kind(reward) == "picture":
        return score(reward, images, prompts, label, finite=finite)
    value = images.new_zeros(len(prompts), dtype=torch.float32)
    for rows in _together(prompts, group):
        own = [prompts[r] for r in rows.tolist()]
        found = score(_on_one_group(reward), images[rows.to(images.device)], own, label, finite=finite).value
        value = value.index_copy(0, rows.to(value.device), found.to(value))
    return Scores(value)


def _on_one_group(reward: Any) -> AnyReward:
    """A group reward called like any other, with the pictures of a single prompt."""
    return lambda images, prompts: reward.score_group(images, prompts[0])


def _together(prompts: Sequence[str], group: Tensor | None) -> Iterator[Tensor]:
    numbers = {prompt: k for k, prompt in enumerate(dict.fromkeys(prompts))}
    return groups(torch.tensor([numbers[p] for p in prompts]) if group is None else group)


def measure_set(reward: Any, images: Tensor, prompts: Sequence[str], label: str) -> float:
    """What a set reward says of all pictures (B, 3, H, W) together; a number that is not finite is an error."""
    refuse_video(reward, images, label)
    value = float(reward.score_set(images, prompts))
    if not math.isfinite(value):
        raise RunError(
            f"reward {label!r} returned {value} for a set of {len(images)} pictures; fix it, then resume."
        )
    return value


def prepare(rewards: Mapping[str, AnyReward], prompts: Sequence[str]) -> None:
    """Let every reward that can prepare itself for these prompts."""
    for reward in rewards.values():
        if hasattr(reward, "prepare"):
            reward.prepare(list(dict.fromkeys(prompts)))


def close(rewards: Mapping[str, AnyReward]) -> None:
    """Let go of rewards that hold a connection or a process."""
    for reward in rewards.values():
        if hasattr(reward, "close"):
            reward.close()
