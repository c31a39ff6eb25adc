"""The one denoising loop: a step, the walk of all steps, a rollout that keeps them, a re-scoring of them.

Dimensions: B samples, N steps.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.grid import Grid
from diffalign.models.conditioning import Conditioning
from diffalign.policy import Policy
from diffalign.seeds import derive, normal
from diffalign.steps import Gaussian, StepRule
from diffalign.trajectory import Trajectory


@dataclass(frozen=True)
class Step:
    """One step of B samples: from x at level i (B,) to `next` at level i + 1."""

    i: Tensor
    x: Tensor
    output: Tensor
    dist: Gaussian
    next: Tensor
    grid: Grid

    @property
    def x0(self) -> Tensor:
        """The clean sample that the denoiser sees in x."""
        return self.grid.x0_eps(self.output, self.x, self.i)[0]

    def redrawn(self, rows: Tensor, seeds: Sequence[int]) -> Tensor:
        """Latents of level i + 1 that follow x[rows] (C, ...), with the noise of these C seeds."""
        rows = rows.to(self.x.device)
        dist = Gaussian(self.dist.mean[rows], self.dist.std[rows])
        return dist.sample(noise(seeds, self.i[rows], self.x)).to(self.x.dtype)

    @staticmethod
    def cat(parts: Sequence[Step]) -> Step:
        """Steps of some samples, then those of others."""
        i, x, output, mean, std, following = (
            torch.cat(column)
            for column in zip(
                *((p.i, p.x, p.output, p.dist.mean, p.dist.std, p.next) for p in parts), strict=True
            )
        )
        return Step(i, x, output, Gaussian(mean, std), following, parts[0].grid)


def noise(seeds: Sequence[int], i: Tensor, like: Tensor) -> Tensor:
    """The standard normal noise of steps from levels i (B,), shaped and placed as `like` (B, ...)."""
    each = [derive(seed, level) for seed, level in zip(seeds, i.tolist(), strict=True)]
    return normal(each, like.shape[1:]).to(like.device)


def step(
    policy: Policy, rule: StepRule, grid: Grid, x: Tensor, i: Tensor, cond: Conditioning, seeds: Sequence[int]
) -> Step:
    """One step of samples x (B, ...) that may stand at different levels i (B,); pure.

    The noise of a sample depends on its seed and its level alone. `next` is rounded to x's dtype
    before anybody takes its log-prob.
    """
    output = policy.predict(x, grid.time(i), cond)
    dist = rule(output, x, grid, i)
    following = dist.mean
    if bool((rule.std(grid)[i.cpu()] > 0).any()):
        following = dist.sample(noise(seeds, i, x))
    return Step(i, x, output, dist, following.to(x.dtype), grid)


def walk(
    policy: Policy,
    rule: StepRule,
    x: Tensor,
    cond: Conditioning,
    seeds: Sequence[int],
    grid: Grid | None = None,
) -> Generator[Step, Tensor | None, None]:
    """All steps from x (B, ...) at level 0; `.send(indices)` goes on with those samples instead."""
    grid = grid or policy.grid
    for k in range(grid.steps):
        i = torch.full((len(x),), k, device=x.device)
        taken = step(policy, rule, grid, x, i, cond, seeds)
        x = taken.next
        chosen = yield taken
        if chosen is not None:
            x, cond, seeds = x[chosen], cond[chosen], fork(seeds, chosen.tolist())


def fork(seeds: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """Seeds of the chosen samples; the second and later copies of a sample get seeds of their own."""
    copies = [chosen[:n].count(j) for n, j in enumerate(chosen)]
    return [derive(seeds[j], copy) if copy else seeds[j] for j, copy in zip(chosen, copies, strict=True)]


def chunks(n: int, size: int) -> Iterator[Tensor]:
    """The indices 0 ... n - 1 in runs of at most `size`."""
    return iter(torch.split(torch.arange(n), max(1, size)))


@torch.no_grad()
def decode(policy: Policy, latents: Tensor, batch: int) -> Tensor:
    """Pictures of latents (B, ...), at most `batch` at a time."""
    pieces = [policy.decode(some) for some in torch.split(latents, batch)]
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


@torch.no_grad()
def rollout(
    policy: Policy,
    rule: StepRule,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    noise_seeds: Sequence[int],
    group: Sequence[int],
    batch: int,
    cond: Conditioning | None = None,
    version: int = 0,
    advance: Callable[[int], None] = lambda n: None,
    finished: Callable[[Tensor, Tensor], None] = lambda rows, latents: None,
) -> Trajectory:
    """Sample B trajectories, at most `batch` at once, without gradients.

    seeds drive the steps and noise_seeds the initial latents (equal ones share x_T); `advance(n)`
    hears of every n samples taken one step further, `finished(rows, latents)` of every batch at its end.
    Law: log-probs are of the latents as stored.
    """
    cond = policy.encode(prompts) if cond is None else cond
    states, log_probs = [], []
    for rows in chunks(len(prompts), batch):
        listed = rows.tolist()
        x = policy.noise([noise_seeds[r] for r in listed])
        path, scores = _trace(walk(policy, rule, x, cond[rows], [seeds[r] for r in listed]), x, advance)
        states.append(path)
        log_probs.append(scores)
        finished(rows, path[:, -1])
    return Trajectory(
        prompts=list(prompts), group=torch.tensor(list(group)), seeds=list(seeds), cond=cond,
        states=torch.cat(states), log_probs=torch.cat(log_probs), grid=policy.grid, rule=rule,
        guidance_scale=policy.guidance_scale, version=version,
    )  # fmt: skip


def _trace(steps: Iterator[Step], x: Tensor, advance: Callable[[int], None]) -> tuple[Tensor, Tensor]:
    """States (B, N+1, ...) from x on and log-probs (B, N) of some steps; nan where the step has none."""
    path, scores = [x], []
    for taken in steps:
        path.append(taken.next)
        known = bool((taken.dist.std > 1e-8).all())
        scores.append(taken.dist.log_prob(taken.next) if known else x.new_full((len(x),), torch.nan).float())
        advance(len(x))
    return torch.stack(path, 1), torch.stack(scores, 1)


def rescore(policy: Policy, batch: Trajectory, rows: Tensor, cols: Tensor) -> Gaussian:
    """The policy's distribution of the transitions (rows, cols) (M,) of a batch, in one denoiser call."""
    if policy.guidance_scale != batch.guidance_scale:
        raise DiffalignError(
            f"the rollout was made with guidance scale {batch.guidance_scale}, the policy now has "
            f"{policy.guidance_scale}: the log-probs are not comparable. Use one guidance scale for both."
        )
    at = rows.to(batch.states.device), cols.to(batch.states.device)
    x = batch.states[at]
    output = policy.predict(x, batch.grid.time(at[1]), batch.cond[rows])
    return batch.rule(output, x, batch.grid, at[1])


def log_prob(policy: Policy, batch: Trajectory, rows: Tensor, cols: Tensor) -> Tensor:
    """Log-probs (M,) in nats of the stored transitions (rows, cols) under the policy as it is now."""
    at = rows.to(batch.states.device), cols.to(batch.states.device)
    return rescore(policy, batch, rows, cols).log_prob(batch.states[at[0], at[1] + 1])
