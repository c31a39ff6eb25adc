"""PRDP: regression of reward differences, stable on many prompts.

Deng et al. 2024 (arXiv 2402.08714). Dimensions: B samples, N steps, P pairs of one prompt each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffalign.bounds import Above0, Positive
from diffalign.credit import pairs
from diffalign.losses import reward_difference
from diffalign.run import Run
from diffalign.trajectory import Trajectory, select


@dataclass
class PRDP:
    """Makes log-ratio differences of whole trajectories equal reward differences / beta.

    beta_nats: reward per nat of the trajectory's log ratio (summed over steps and dimensions).
    clip_mean: proximal clip of each step's log ratio to the rollout's policy, in nats per dimension.
    epochs: passes over the round's minibatches. share_noise gives the pictures of a prompt one x_T;
    then the optimum is reached exactly even if the sampler is not memoryless.
    keep: train on this many best and as many worst pictures of each prompt only; None: on all.
    """

    min_images_per_prompt: ClassVar[int] = 2

    beta_nats: Above0 = 0.1
    clip_mean: Above0 = 1e-4
    epochs: Positive = 1
    share_noise: bool = False
    keep: Positive | None = None

    def collect(self, run: Run) -> Trajectory:
        """Scored trajectories with reference log-probs."""
        batch = select(run.sample(share_noise=self.share_noise), self.keep)
        run.reference(batch)
        return batch

    def minibatches(self, run: Run, batch: Trajectory) -> Iterator[Trajectory]:
        """Whole prompts, `epochs` times."""
        for _ in range(self.epochs):
            yield from run.split(batch)

    def losses(self, run: Run, batch: Trajectory) -> Iterator[Tensor]:
        """Two passes, so that memory grows neither with steps nor with pictures.

        First d loss / d log-prob of every transition from log-probs without gradients, then that
        coefficient times each log-prob, micro-batch by micro-batch.
        """
        now = (batch.log_probs if run.fresh else self._rescored(run, batch)).requires_grad_()
        loss = self.objective(run, batch, now)
        run.record("loss", loss)
        (weight,) = torch.autograd.grad(loss, now)
        for rows, cols in run.transitions(batch):
            yield (weight[rows, cols] * run.log_prob(batch, rows, cols)).sum()

    def objective(self, run: Run, batch: Trajectory, now: Tensor) -> Tensor:
        """The loss of log-probs (B, N) in nats (eq. 15, 20 and 21)."""
        assert batch.reference_log_probs is not None
        live, eps = batch.live, self.clip_mean * batch.dim
        reference, old = batch.reference_log_probs[:, live], batch.log_probs.detach()[:, live]
        ratio = now[:, live] - reference
        near = ratio.clamp(old - reference - eps, old - reference + eps)
        run.record("clip_fraction", (ratio != near).float())
        reward = batch.total.to(ratio)
        return reward_difference(ratio.sum(1), near.sum(1), reward, self.beta_nats, pairs(batch.group))

    @torch.no_grad()
    def _rescored(self, run: Run, batch: Trajectory) -> Tensor:
        now = batch.log_probs.clone()
        for rows, cols in run.transitions(batch):
            now[rows, cols] = run.transition(batch, rows, cols)[1]
        return now
