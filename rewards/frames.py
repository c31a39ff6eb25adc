"""Lifts a reward of pictures to video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from diffalign.reward import DiffalignError, Reward, Scores, capability, kind, once, score, unknown

Reduce = Literal["mean", "min", "last", "softmin"]
AT_ONCE = 64
"""Frames the reward sees in one call."""


class Frames:
    """The reward of every `stride`-th frame from the first on, reduced to one score a video.

    reduce "mean"; "min": the worst frame; "last": the last frame alone; "softmin": -τ log mean exp(-s / τ), a
    worst frame to which the others add a little: between min (temperature τ → 0) and mean (τ → ∞), and
    no frame can gain by getting worse. Parts and uncertainty are averaged with the weights that the frames have
    in the score's gradient. A picture is a video of one frame. Differentiable where the reward is.
    """

    video = True

    def __init__(
        self, reward: Reward, reduce: Reduce = "mean", temperature: float | None = None, stride: int = 1
    ) -> None:
        if reduce not in get_args(Reduce):
            raise unknown("reduce of frames", reduce, get_args(Reduce))
        if kind(reward) != "picture":
            raise DiffalignError(f"frames lifts rewards of single pictures; {type(reward).__name__} is none.")
        _check(reduce, temperature, stride)
        self.reward, self.reduce, self.temperature, self.stride = reward, reduce, temperature or 1.0, stride
        self.differentiable = capability(reward, "differentiable")
        self.needs_reference = capability(reward, "needs_reference")

    def prepare(self, prompts: Sequence[str]) -> None:
        """Let the reward prepare itself for the prompts."""
        if hasattr(self.reward, "prepare"):
            self.reward.prepare(prompts)

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Scores:
        """Scores (B,) of videos (B, F, 3, H, W) or pictures (B, 3, H, W) in [0, 1] for their prompts."""
        some = once(("frames", self.reduce == "last", self.stride), images, lambda: self._chosen(images))
        count = sum(map(len, some)) // len(prompts)
        texts = [prompt for prompt in prompts for _ in range(count)]
        seen = [
            score(self.reward, each, texts[k * AT_ONCE :][: len(each)], "inside frames")
            for k, each in enumerate(some)
        ]
        value = torch.cat([scores.value for scores in seen]).reshape(len(prompts), count)
        weights = self._weights(value)
        return Scores(self._reduced(value, weights), *_averaged(seen, weights))

    def _chosen(self, images: Tensor) -> tuple[Tensor, ...]:
        """Frames (B F / stride, 3, H, W), in portions."""
        videos = images if images.ndim == 5 else images[:, None]
        chosen = videos[:, -1:] if self.reduce == "last" else videos[:, :: self.stride]
        return torch.split(chosen.flatten(0, 1), AT_ONCE)

    def _weights(self, value: Tensor) -> Tensor:
        """How much each frame counts (B, F), for scores (B, F)."""
        match self.reduce:
            case "min":
                return torch.zeros_like(value).scatter(1, value.argmin(1, keepdim=True), 1.0)
            case "softmin":
                return (-value / self.temperature).softmax(1).detach()
        return torch.full_like(value, 1 / value.shape[1])

    def _reduced(self, value: Tensor, weights: Tensor) -> Tensor:
        if self.reduce != "softmin":
            return (weights * value).sum(1)
        worst = value.detach().amin(1)
        above = (value - worst[:, None]) / self.temperature
        return worst - self.temperature * torch.expm1(-above).mean(1).log1p()  # exact at both ends of τ


def _averaged(seen: Sequence[Scores], weights: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
    """Parts and uncertainty of all frames, (B,) each."""

    def average(values: list[Tensor]) -> Tensor:
        return (weights * torch.cat(values).view_as(weights)).sum(1)

    parts = {name: average([scores.parts[name] for scores in seen]) for name in seen[0].parts}
    unsure = [scores.uncertainty for scores in seen if scores.uncertainty is not None]
    return parts, average(unsure) if unsure else None


def _check(reduce: Reduce, temperature: float | None, stride: int) -> None:
    if (temperature is None) == (reduce == "softmin") or (temperature is not None and temperature <= 0):
        raise DiffalignError(
            f"frames with reduce {reduce!r} has the temperature {temperature}; softmin needs one above 0, in "
            "units of the reward's scores, and the others take none."
        )
    if stride < 1 or (stride > 1 and reduce == "last"):
        raise DiffalignError(
            f"the stride of frames is {stride}; it must be 1 or more, and 1 for the last frame."
        )
