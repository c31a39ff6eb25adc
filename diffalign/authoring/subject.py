"""A reward under test, whichever protocol it follows, and pictures and prompts to ask it about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from diffalign.reward import AnyReward, Scores, capability, kind, score

PROMPTS = ("red apple", "a photo of a dog on a beach", "3d rocket")
SIDE, FRAMES = 64, 4


@dataclass(frozen=True)
class Subject:
    """A reward, and prompts that it understands: its own `example_prompts`, if it declares any."""

    reward: Any
    prompts: tuple[str, ...] = PROMPTS
    picky: bool = False

    @classmethod
    def of(cls, reward: AnyReward, prompts: Sequence[str] | None = None) -> Subject:
        """The reward with these prompts, else its own examples, else any."""
        own: tuple[str, ...] = tuple(prompts or getattr(reward, "example_prompts", None) or ())
        return cls(reward, own or PROMPTS, picky=bool(own))

    @cached_property
    def kind(self) -> Literal["picture", "group", "set"]:
        """Which protocol it follows."""
        return kind(self.reward)

    @property
    def video(self) -> bool:
        """Whether it is shown videos."""
        return capability(self.reward, "video")

    @cached_property
    def name(self) -> str:
        """What errors call it."""
        inner = getattr(self.reward, "func", self.reward)  # functools.partial binds arguments to functions
        return str(getattr(inner, "__name__", type(inner).__name__))

    def some(self, count: int) -> list[str]:
        """Prompts (B,); those of a group are all alike."""
        every = self.prompts[:1] if self.kind == "group" else self.prompts
        return [every[k % len(every)] for k in range(count)]

    def ask(self, images: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
        """Scores (B,) on the CPU in float64, or (1,) of a set."""
        return self.scores(images, prompts).value.detach().double().cpu()

    def scores(self, images: Tensor, prompts: Sequence[str] | None = None) -> Scores:
        """What it returns, checked for its shape and for numbers that are not finite."""
        prompts = self.some(len(images)) if prompts is None else prompts
        if self.kind == "picture":
            return score(self.reward, images, prompts, self.name)
        if self.kind == "group":
            return score(lambda x, p: self.reward.score_group(x, p[0]), images, prompts, self.name)
        value = torch.as_tensor(self.reward.score_set(images, prompts))
        return score(lambda *_: value.reshape(-1), images[:1], prompts[:1], self.name)

    def pictures(self, count: int = 3, height: int = SIDE, width: int = SIDE) -> Tensor:
        """Different pictures with smooth shapes; in videos they move."""
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(count, 3, 6, 6, generator=generator)
        images = 0.1 + 0.8 * interpolate(coarse, (height, width), mode="bilinear")
        return self._moving(images) if self.video else images

    def plain(self, level: Sequence[float], height: int = SIDE, width: int = SIDE) -> Tensor:
        """Three pictures of one colour."""
        images = torch.tensor(level, dtype=torch.float32)[None, :, None, None].repeat(3, 1, height, width)
        return images[:, None].repeat(1, FRAMES, 1, 1, 1) if self.video else images

    def _moving(self, images: Tensor) -> Tensor:
        """Videos (B, F, 3, H, W); perfect motion is where a reward of motion has a kink, so there is grain."""
        frames = torch.stack([images.roll(2 * k, -1) for k in range(FRAMES)], 1)
        grain = torch.rand(frames.shape, generator=torch.Generator().manual_seed(1))
        return frames * (0.96 + 0.04 * grain)
