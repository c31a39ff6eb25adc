"""Policies that know data N(mean, var I) exactly, under any grid and prediction target.

Everything they do is affine, so the distribution of their samples is computed and not drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from diffalign.grid import Grid
from diffalign.seeds import normal


class Asked:
    """Conditioning that is nothing but the prompts."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.prompts = list(prompts)

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: Tensor | Sequence[int]) -> Asked:
        return Asked([self.prompts[int(k)] for k in rows])


class GaussianPolicy:
    """The exact denoiser of N(mean, var), D-dimensional; `reference` (mean, var) is what it was before tuning."""

    def __init__(
        self, grid: Grid, mean: float, var: float, reference: tuple[float, float] = (0.0, 1.0), dim: int = 3
    ) -> None:
        self.grid, self.latent_shape, self.denoiser_calls = grid, (dim,), 0
        self.moments = {"policy": (mean, var), "reference": reference}
        self.variant = "policy"

    def encode(self, prompts: Sequence[str]) -> Asked:
        return Asked(prompts)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        return normal(seeds, self.latent_shape) * self.grid.noise[0].float()

    def predict(self, x: Tensor, t: Tensor, cond: Asked) -> Tensor:
        assert len(x) == len(t) == len(cond)
        self.denoiser_calls += len(x)
        mean, var = self.moments[self.variant]
        a, s = self.grid.level(self.grid.index(t), x)
        eps = s * (x - a * mean) / (a * a * var + s * s)
        x0 = mean + a * var * (x - a * mean) / (a * a * var + s * s)
        match self.grid.target:
            case "epsilon":
                return eps
            case "v_prediction":
                return a * eps - s * x0
            case "sample":
                return x0
            case "flow_prediction":
                return eps - x0

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def differs(self, name: str = "policy") -> bool:
        return self.moments[name] != self.moments["reference"]

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        before, self.variant = self.variant, name
        try:
            yield
        finally:
            self.variant = before


def vp(steps: int, target: str = "epsilon") -> Grid:
    """DDPM's linear schedule, every 1000 / steps-th timestep, down to the data."""
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    return Grid.vp(torch.arange(999, -1, -1000 // steps), abar, 1.0, target)


def flow(steps: int) -> Grid:
    """From noise alone to the data in equal steps."""
    sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return Grid.from_sigmas(sigmas[:-1] * 1000, sigmas)


def reached(policy, rule, prompt: str = "a") -> tuple[float, float]:
    """Mean and variance of the samples: every step maps N(m, v) to N(c + k m, k^2 v + std^2)."""
    grid, mean, var = policy.grid, 0.0, float(policy.grid.noise[0]) ** 2
    cond = policy.encode([prompt] * 2)
    ends = torch.tensor([[0.0], [1.0]]).expand(2, *policy.latent_shape)
    for k in range(grid.steps):
        i = torch.full((2,), k)
        dist = rule(policy.predict(ends, grid.time(i), cond), ends, grid, i)
        start, slope = (float(v) for v in (dist.mean[0, 0], dist.mean[1, 0] - dist.mean[0, 0]))
        mean, var = start + slope * mean, slope**2 * var + float(dist.std[0]) ** 2
    return mean, var
