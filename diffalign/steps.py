"""Step rules: what the next latents are distributed like, given the denoiser's output.

A rule maps (output, x, grid, i) to a Gaussian; sampling and re-scoring read the same object.
Dimensions: B samples, D numbers in one latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffalign.bounds import Count, NotNegative, UpTo1
from diffalign.errors import DiffalignError
from diffalign.grid import Grid, expand

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
STD_MIN = 1e-8
"""A step with less noise than this counts as deterministic."""


@dataclass(frozen=True)
class Gaussian:
    """N(mean, std^2 I): mean (B, ...) and std (B, 1, ..., 1), both float32."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise, for standard normal noise (B, ...)."""
        return self.mean + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of x (B, ...) in nats, summed over dimensions: (B,). Raises where std is 0."""
        if bool((self.std <= 0).any()):
            raise DiffalignError(
                "a step with std 0 is deterministic and has no log-probability; leave such steps out."
            )
        z = (x.float() - self.mean) / self.std
        return (-0.5 * z.square() - self.std.log() - LOG_SQRT_2PI).flatten(1).sum(1)

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) in nats, (B,), for two Gaussians of the same std; 0 where std is 0."""
        live = self.std > 0
        z = torch.where(live, (self.mean - other.mean) / self.std.where(live, 1.0), 0.0)
        return 0.5 * z.square().flatten(1).sum(1)


class StepRule(Protocol):
    """What `walk` needs to know to take one step of the grid."""

    def __call__(self, output: Tensor, x: Tensor, grid: Grid, i: Tensor) -> Gaussian:
        """Distribution of level i + 1 given x at level i (B,) and the denoiser's output."""
        ...

    def std(self, grid: Grid) -> Tensor:
        """The standard deviation of every step of the grid, (N,) float64."""
        ...


@dataclass(frozen=True)
class DDIM:
    """DDIM (Song et al. 2021, eq. 12 and 16) for diffusion models; eta 1 is DDPM, eta 0 the ODE.

    quiet_last: take this many last steps without noise. In a short run the last jump to almost no
    noise has so small a sigma that its log-prob would drown those of all other steps.
    """

    eta: UpTo1 = 1.0
    quiet_last: Count = 0

    def std(self, grid: Grid) -> Tensor:
        """sigma of eq. 16: eta * sqrt((1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s))."""
        if grid.flow:
            raise DiffalignError(
                "rule 'ddim' is for diffusion models; this is a flow model: use 'flow_sde' or 'ode'."
            )
        abar, rest = grid.signal.square(), grid.noise.square()
        ratio = torch.where(abar[1:] > 0, abar[:-1] / abar[1:], 0.0)
        std = self.eta * (rest[1:] / rest[:-1] * (1 - ratio)).clamp_min(0).sqrt()
        return torch.where(torch.arange(grid.steps) < grid.steps - self.quiet_last, std, 0.0)

    def __call__(self, output: Tensor, x: Tensor, grid: Grid, i: Tensor) -> Gaussian:
        """sqrt(abar_s) x0 + sqrt(1 - abar_s - sigma^2) eps, sigma (eq. 12)."""
        x0, eps = grid.x0_eps(output, x, i)
        std = self.std(grid)
        toward = (grid.noise[1:].square() - std.square()).clamp_min(0).sqrt()
        signal, _ = grid.level(i + 1, x)
        at = i.cpu()
        return Gaussian(signal * x0 + expand(toward[at], x) * eps, expand(std[at], x))


@dataclass(frozen=True)
class FlowSDE:
    """The stochastic sampler of flow models with the ODE's marginals (Flow-GRPO, eq. 9).

    g_t = noise_level * sqrt(t / (1 - t)); at the first level, which is 1 or nearly 1 (0.99999 in Wan's
    scheduler), the next level stands in for t in 1 - t.
    mean = x - dt [v + g^2 / (2 t) (x + (1 - t) v)], std = g sqrt(dt).
    """

    noise_level: NotNegative = 0.7

    def diffusion(self, grid: Grid) -> Tensor:
        """g at the start of every step, (N,) float64."""
        if not grid.flow:
            raise DiffalignError("rule 'flow_sde' is for flow models; this is a diffusion model: use 'ddim'.")
        t, after = grid.noise[:-1], grid.noise[1:]
        first = torch.arange(grid.steps) == 0
        return self.noise_level * (t / (1 - torch.where(first, after, t))).sqrt()

    def std(self, grid: Grid) -> Tensor:
        """g sqrt(dt)."""
        return self.diffusion(grid) * (grid.noise[:-1] - grid.noise[1:]).sqrt()

    def __call__(self, output: Tensor, x: Tensor, grid: Grid, i: Tensor) -> Gaussian:
        """The Euler-Maruyama step of the SDE above."""
        at = i.cpu()
        drift = self.diffusion(grid).square() / (2 * grid.noise[:-1])
        x0, eps = grid.x0_eps(output, x, i)
        dt = (grid.noise[:-1] - grid.noise[1:])[at]
        mean = x.float() - expand(dt, x) * (eps - x0 + expand(drift[at], x) * eps)
        return Gaussian(mean, expand(self.std(grid)[at], x))


@dataclass(frozen=True)
class ODE:
    """The deterministic step of both kinds: DDIM at eta 0, Euler for flows. std is 0."""

    def std(self, grid: Grid) -> Tensor:
        """0 at every step."""
        return torch.zeros(grid.steps, dtype=torch.float64)

    def __call__(self, output: Tensor, x: Tensor, grid: Grid, i: Tensor) -> Gaussian:
        """signal_s x0 + noise_s eps."""
        x0, eps = grid.x0_eps(output, x, i)
        signal, noise = grid.level(i + 1, x)
        return Gaussian(signal * x0 + noise * eps, torch.zeros_like(signal))


@dataclass(frozen=True)
class Consistency:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): the clean sample, noised anew to the next level.

    The last step ends at the clean sample itself, whatever noise the grid leaves; a run of one step is that step.
    """

    def std(self, grid: Grid) -> Tensor:
        """The noise of the next level; 0 at the last step."""
        return torch.where(torch.arange(grid.steps) < grid.steps - 1, grid.noise[1:], 0.0)

    def __call__(self, output: Tensor, x: Tensor, grid: Grid, i: Tensor) -> Gaussian:
        """signal_s x0, noise_s."""
        x0, _ = grid.x0_eps(output, x, i)
        at = i.cpu()
        signal = torch.where(at < grid.steps - 1, grid.signal[at + 1], 1.0)
        return Gaussian(expand(signal, x) * x0, expand(self.std(grid)[at], x))


def stochastic(rule: StepRule, grid: Grid) -> Tensor:
    """Indices of the steps that have noise, and so a log-prob."""
    return (rule.std(grid) > STD_MIN).nonzero().flatten()


def default_rule(grid: Grid) -> StepRule:
    """DDIM(1) for diffusion models, FlowSDE() for flow models."""
    return FlowSDE() if grid.flow else DDIM()


RULES: dict[str, type[StepRule]] = {
    "ddim": DDIM,
    "flow_sde": FlowSDE,
    "ode": ODE,
    "consistency": Consistency,
}
