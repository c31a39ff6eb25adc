"""D3PO: direct preference optimisation of every denoising step, without a reward model.

Yang et al. 2024 (arXiv 2311.13231). Dimensions: C cells (a prompt at a step), K pictures, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from diffalign.bounds import Above0, Below1, Positive, Share
from diffalign.credit import groups, prefer
from diffalign.losses import clip_ratio, preference
from diffalign.run import Run
from diffalign.trajectory import Trajectory, select


@dataclass
class D3PO:
    """Preferences between pictures of one prompt that share x_T, judged by the reward or by people.

    mode "paper_code": log ratios per dimension, each clipped to log(1 +- clip), as published; beta only
    scales the gradient. mode "calibrated": log ratios in nats, not clipped; beta is the DPO temperature
    (reward per nat: the one-step optimum is reward / beta nats).
    labels "hard" prefers the higher reward; "bradley_terry" draws the label with P = sigmoid(difference).
    compare "pareto" prefers a picture only if no part of the reward is lower; else it is a tie.
    reference "previous_round" is the paper's mode for people's votes.
    timestep_fraction: share of the steps, drawn anew for each update, that is trained on.
    keep: train on this many best and as many worst pictures of each prompt only; None: on all.
    """

    min_images_per_prompt: ClassVar[int] = 2

    mode: Literal["paper_code", "calibrated"] = "calibrated"
    beta: Above0 = 0.1
    clip: Below1 = 0.1
    labels: Literal["hard", "bradley_terry"] = "hard"
    compare: Literal["total", "pareto"] = "total"
    reference: Literal["pretrained", "previous_round"] = "pretrained"
    timestep_fraction: Share = 1.0
    keep: Positive | None = None

    def together(self, images: int) -> int:
        """How many of a prompt's pictures pass the denoiser together, and so must fit into a micro-batch."""
        return images if self.keep is None else min(images, 2 * self.keep)

    def collect(self, run: Run) -> Trajectory:
        """K pictures a prompt with one x_T, their preferences and reference log-probs."""
        batch = select(run.sample(share_noise=True), self.keep)
        if self.reference == "pretrained":
            run.reference(batch)
        else:
            batch.reference_log_probs = batch.log_probs
        return batch

    def minibatches(self, run: Run, batch: Trajectory) -> Iterator[Trajectory]:
        """Each prompt once."""
        return run.split(batch)

    def losses(self, run: Run, batch: Trajectory) -> Iterator[Tensor]:
        """Every picture and step passes the denoiser once; all pairs of a prompt read from it (eq. 15)."""
        assert batch.reference_log_probs is not None
        members = torch.stack(list(groups(batch.group)))
        first, second = torch.combinations(torch.arange(members.shape[1])).unbind(1)
        signs = prefer(
            self._values(batch), members[:, first], members[:, second], self.labels, run.generator("labels")
        )
        sign_of = torch.zeros(len(batch), len(first)).index_copy(0, members[:, 0], signs)
        steps = run.some_steps(batch, self.timestep_fraction)
        count = len(members) * len(steps) * len(first)
        for rows, cols in run.cells(batch, members, steps):
            now = run.log_prob(batch, rows, cols)
            ratio = self._bounded(run, now - batch.reference_log_probs[rows, cols], batch.dim)
            sign = sign_of[rows[:, 0]].to(ratio.device)
            run.record("d3po/logit", self.beta * (ratio[:, first] - ratio[:, second]).abs())
            yield preference(ratio[:, first], ratio[:, second], sign, self.beta).sum() / count

    def _values(self, batch: Trajectory) -> Tensor:
        """What is compared, (B, R): the total reward, or all its parts."""
        parts = [v for name, v in batch.rewards.items() if name != "total" and "." not in name]
        return torch.stack(parts, 1) if parts and self.compare == "pareto" else batch.total[:, None]

    def _bounded(self, run: Run, ratio: Tensor, dim: int) -> Tensor:
        if self.mode == "calibrated":
            return ratio
        run.record("clip_fraction", ((ratio / dim).exp() - 1).abs().gt(self.clip).float())
        return clip_ratio(ratio / dim, self.clip)
