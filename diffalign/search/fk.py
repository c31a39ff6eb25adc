"""FK steering: particles that are weighed by what they will become, and resampled on the way.

Singhal et al. 2025 (arXiv 2501.06848). Dimensions: P prompts, K particles of each, B = P K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from diffalign.bounds import NotNegative, Positive, Share, UpTo1
from diffalign.errors import DiffalignError
from diffalign.grid import Grid
from diffalign.search import Found, Search, Task
from diffalign.steps import stochastic

Potential = Literal["diff", "max", "sum"]


@dataclass
class FK(Search):
    """Sequential Monte Carlo towards p exp(lam r); the best particle of each prompt is what it found.

    particles: K, samples of each prompt that are computed side by side.
    lam: nats per unit of reward. What counts is lam times the reward's standard deviation among samples
    of one prompt: 1 tilts gently, 10 keeps hardly more than the best particle's heirs. That of emoji_clip
    on the packaged model is 0.04; 10 is meant for rewards whose is nearer to 1.
    potential: what weighs them, "diff" exp(lam (r_t - r_before)), "max" exp(lam max r), "sum" exp(lam sum r),
    where r_t is the reward of the clean sample that the denoiser sees.
    start, end, every: where rewards are looked at, in shares of the run's steps.
    resample_below: resample where the effective number of particles is below this share of K; until
    then weights add up. 1 resamples every time.
    """

    particles: Positive = 4
    lam: NotNegative = 10.0
    potential: Potential = "diff"
    start: UpTo1 = 0.2
    end: UpTo1 = 0.8
    every: Share = 0.2
    resample_below: Share = 1.0

    def levels(self, grid: Grid) -> list[int]:
        """The steps of the grid after which particles are weighed; the last is weighed in any case."""
        count = int((self.end - self.start) / self.every + 1e-9) + 1
        shares = [self.start + n * self.every for n in range(max(0, count))]
        return sorted({step for share in shares if (step := round(share * grid.steps)) < grid.steps - 1})

    def check(self, task: Task) -> None:
        """Copies of a particle part by the noise of later steps alone: there must be some."""
        grid = task.policy.grid
        noisy, weighed = set(stochastic(task.rule, grid).tolist()), self.levels(grid)
        if weighed and not noisy.intersection(range(weighed[-1], grid.steps)):
            raise DiffalignError(
                f"FK steering copies particles after step {weighed[-1]}, and with {task.rule} no noise makes the "
                "copies differ. Use rule 'ddim' with eta above 0 (diffusion) or 'flow_sde' with noise_level above "
                "0 (flow)."
            )

    def search(self, task: Task) -> Found:
        """See Search; the extras hold each prompt's particles with their rewards and weights."""
        owner = task.everyone.repeat_interleave(self.particles)
        member = torch.arange(self.particles).repeat(len(task.prompts))
        seeds = task.seeds("steps", owner, member)
        x = noise = task.noise(owner, member)
        swarm = self.swarm(len(task.prompts))
        for k in range(task.policy.grid.steps):
            taken = task.advance(x, torch.full((len(x),), k), owner, seeds)
            x = taken.next
            if k in self.levels(task.policy.grid):
                swarm.weigh(task.score(taken.x0.to(x.dtype), owner)["total"])
                chosen = swarm.resample(_dice(task, k), self.resample_below)
                x, noise = taken.redrawn(chosen, seeds), noise[chosen.to(noise.device)]
        scores = task.score(x, owner)
        swarm.finish(scores["total"])
        task.offer(owner, x, noise, scores)
        return task.found(self._population(swarm, x, scores["total"]))

    def swarm(self, prompts: int) -> Swarm:
        """Particles that nothing is known of."""
        return Swarm(prompts, self.particles, self.lam, self.potential)

    def _population(self, swarm: Swarm, x: Tensor, total: Tensor) -> list[dict[str, Any]]:
        """A weighted sample of p exp(lam r) for each prompt: latents (K, ...), rewards and weights (K,)."""
        shape = len(swarm.weights), self.particles
        each = x.reshape(*shape, *x.shape[1:]), total.reshape(shape), swarm.weights
        return [
            {"particles": latents, "rewards": rewards, "weights": weights}
            for latents, rewards, weights in zip(*each, strict=True)
        ]


class Swarm:
    """Log-weights of K particles of each of P prompts, (P, K) float64.

    spent: the log of the potentials each particle's ancestors were weighed with, whether or not they were
    resampled by it; the last potential is exp(lam r - spent), so that all of them multiply to exp(lam r).
    memory: the last reward, the largest or the sum of all, as the potential asks.
    A particle whose reward is minus infinity weighs nothing, unless that is so of all of its prompt.
    """

    def __init__(self, prompts: int, particles: int, lam: float, potential: Potential) -> None:
        self.lam, self.potential = lam, potential
        zero = torch.zeros(prompts, particles, dtype=torch.float64)
        self.log_weights, self.spent = zero, zero
        self.memory = zero - torch.inf if potential == "max" else zero

    def weigh(self, rewards: Tensor) -> None:
        """Weigh particles by intermediate rewards (B,)."""
        reward = rewards.double().reshape(self.spent.shape)
        match self.potential:
            case "diff":
                memory, gain = reward, reward - self.memory
            case "max":
                memory = gain = torch.maximum(self.memory, reward)
            case "sum":
                memory = gain = self.memory + reward
        known = reward > -torch.inf
        self.memory = memory.where(known, self.memory)
        self._add(self.lam * gain, known)

    def finish(self, rewards: Tensor) -> None:
        """Weigh finished particles by their rewards (B,)."""
        reward = rewards.double().reshape(self.spent.shape)
        self._add(self.lam * reward - self.spent, reward > -torch.inf)

    def _add(self, gain: Tensor, known: Tensor) -> None:
        self.spent = (self.spent + gain).where(known, self.spent)
        weighed = (self.log_weights + gain).where(known, -torch.inf)
        lost = (weighed == -torch.inf).all(1, keepdim=True)
        self.log_weights = self.log_weights.where(lost, weighed)

    @property
    def weights(self) -> Tensor:
        """(P, K), adding up to 1 for each prompt."""
        return self.log_weights.softmax(1)

    @property
    def effective(self) -> Tensor:
        """The effective number of particles of each prompt, (P,)."""
        return 1 / self.weights.square().sum(1)

    def resample(self, dice: Tensor, below: float) -> Tensor:
        """The particles (B,) to go on with, drawn with a number (P,) in [0, 1) for each prompt."""
        particles = self.spent.shape[1]
        needed = (self.effective < below * particles)[:, None]
        chosen = systematic(self.weights, dice).where(needed, torch.arange(particles))
        self.log_weights = self.log_weights.where(~needed, 0.0)
        self.spent, self.memory = self.spent.gather(1, chosen), self.memory.gather(1, chosen)
        return (chosen + particles * torch.arange(len(chosen))[:, None]).flatten()


def systematic(weights: Tensor, dice: Tensor) -> Tensor:
    """Systematic resampling: K indices for each row of weights (P, K), from one number in [0, 1) a row.

    Each index comes up K times its weight, rounded down or up (Kitagawa 1996).
    """
    count = weights.shape[1]
    points = (torch.arange(count, dtype=weights.dtype) + dice[:, None]) / count
    edges = weights.cumsum(1)
    return torch.searchsorted(edges / edges[:, -1:], points, right=True).clamp_max(count - 1)


def _dice(task: Task, step: int) -> Tensor:
    """A number in [0, 1) for each prompt, (P,) float64."""
    seeds = task.seeds("resample", task.everyone, torch.full_like(task.everyone, step))
    draws = [torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in seeds]
    return torch.stack(draws)
