"""A chain of two states, whose law is a table, behind the interface of a policy.

The latents are one number whose sign is the state; the denoiser sees the sign alone, and says the next mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import erf, exp, sqrt

import torch
from torch import Tensor

from diffalign.grid import Grid
from diffalign.seeds import normal
from diffalign.steps import Gaussian

from .gaussian import Asked

MEANS = ((-0.8, 0.5), (-1.0, 0.8), (-1.8, 1.5), (-1.6, 2.0))
"""Of each step, the mean of what follows state 0 and state 1; the noise has std 1, so late states stick."""


@dataclass(frozen=True)
class Says:
    """The step rule: the denoiser's output is the mean."""

    sigma: float = 1.0

    def std(self, grid: Grid) -> Tensor:
        return torch.full((grid.steps,), self.sigma, dtype=torch.float64)

    def __call__(self, output: Tensor, x: Tensor, grid: Grid, i: Tensor) -> Gaussian:
        return Gaussian(output, torch.full((len(x), 1), self.sigma))


class FinitePolicy:
    latent_shape, device = (1,), torch.device("cpu")

    def __init__(self, means: tuple[tuple[float, float], ...] = MEANS) -> None:
        self.means = torch.tensor(means)
        levels = torch.linspace(0, 1, len(means) + 1, dtype=torch.float64)
        self.grid = Grid(torch.arange(len(means)), levels, 1 - levels, "sample")

    def encode(self, prompts):
        return Asked(prompts)

    def noise(self, seeds):
        return normal(seeds, self.latent_shape)

    def predict(self, x: Tensor, t: Tensor, cond: Asked) -> Tensor:
        assert len(x) == len(t) == len(cond)
        return self.means[t.long(), state(x)][:, None]

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def law(self, tilt: float = 0.0) -> float:
        """The probability of ending in state 1 under p exp(tilt state) (all paths are summed)."""
        mass = [0.0, 0.0]
        for path in product((0, 1), repeat=len(self.means) + 1):
            moves = zip(self.means.tolist(), path, path[1:], strict=False)
            chance = 0.5
            for means, before, after in moves:
                up = 0.5 * (1 + erf(means[before] / sqrt(2)))
                chance *= up if after else 1 - up
            mass[path[-1]] += chance * exp(tilt * path[-1])
        return mass[1] / sum(mass)


def state(x: Tensor) -> Tensor:
    """0 or 1 for latents (B, 1)."""
    return (x[:, 0] > 0).long()


def is_one(images: Tensor, prompts: list[str]) -> Tensor:
    """The reward: the state."""
    return state(images).float()
