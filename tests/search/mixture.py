"""Eight modes on a circle, denoised exactly, and a reward that weighs them by e^(1.5 i) (Jain et al. 2025)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffalign.seeds import normal

from .gaussian import Asked, vp

ANGLES = torch.arange(8) * math.pi / 4
MODES = 2 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
SPREAD = 0.2
"""Standard deviation of a mode."""


class MixturePolicy:
    """The mean of the clean sample given a noisy one, in closed form."""

    latent_shape, device = (2,), torch.device("cpu")

    def __init__(self, steps: int) -> None:
        self.grid = vp(steps, "sample")

    def encode(self, prompts):
        return Asked(prompts)

    def noise(self, seeds):
        return normal(seeds, self.latent_shape)

    def predict(self, x: Tensor, t: Tensor, cond: Asked) -> Tensor:
        assert len(x) == len(t) == len(cond)
        a, s = self.grid.level(self.grid.index(t), x)
        var = (a * SPREAD) ** 2 + s**2
        own = closeness(x, a[:, None] * MODES, var).softmax(1)[..., None]
        means = MODES + (a * SPREAD**2 / var)[:, None] * (x[:, None] - a[:, None] * MODES)
        return (own * means).sum(1)

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def closeness(x: Tensor, modes: Tensor, var: Tensor | float) -> Tensor:
    """Log densities (B, 8) of x (B, 2) in each mode, up to a constant."""
    return -(x[:, None] - modes).square().sum(2) / (2 * var)


def reward(images: Tensor, prompts: list[str]) -> Tensor:
    """Log of the weighed over the even mixture: exp(reward) times the even one is the weighed one."""
    close = closeness(images, MODES, SPREAD**2)
    return (close + 1.5 * torch.arange(8)).logsumexp(1) - close.logsumexp(1)


def mmd2(x: Tensor, wx: Tensor, y: Tensor, wy: Tensor) -> float:
    """Squared maximum mean discrepancy of two weighted samples, under a Gaussian kernel of width 1."""

    def similar(a: Tensor, wa: Tensor, b: Tensor, wb: Tensor) -> float:
        return float(wa.float() @ torch.exp(-torch.cdist(a, b).square() / 2) @ wb.float())

    return similar(x, wx, x, wx) - 2 * similar(x, wx, y, wy) + similar(y, wy, y, wy)
