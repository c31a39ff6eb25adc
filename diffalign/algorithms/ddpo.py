"""DDPO: policy gradients on denoising as a decision process.

Black et al. 2024 (arXiv 2305.13301). Dimensions: B samples, M transitions of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from diffalign.bounds import Above0, NotNegative, Positive, Share
from diffalign.credit import PromptTracker, leave_one_out, standardize
from diffalign.errors import DiffalignError
from diffalign.losses import policy_gradient
from diffalign.run import Run
from diffalign.steps import Gaussian
from diffalign.trajectory import Trajectory, select


@dataclass
class DDPO:
    """Importance sampling with PPO's clip, advantages standardised per prompt.

    clip_range_mean: clip of the ratio exp(log-prob difference per dimension).
    advantage: "per_prompt" standardises by the tracker of each prompt's last rewards (buffer_size of
    them, the batch's below min_count), "batch" by the batch, "leave_one_out" only subtracts the mean of
    the prompt's other pictures and keeps the reward's unit. advantage_clip bounds it.
    kl_weight: advantage units per nat of the exact step KL to the reference; 0 needs no reference.
    timestep_fraction: share of the steps, drawn anew for each update, that is trained on.
    keep: train on this many best and as many worst pictures of each prompt only; None: on all.
    """

    clip_range_mean: Above0 = 1e-4
    advantage: Literal["per_prompt", "batch", "leave_one_out"] = "per_prompt"
    advantage_clip: Above0 = 5.0
    buffer_size: Positive = 32
    min_count: Positive = 16
    epochs: Positive = 1
    timestep_fraction: Share = 1.0
    kl_weight: NotNegative = 0.0
    keep: Positive | None = None
    tracker: PromptTracker = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.min_count > self.buffer_size:
            raise DiffalignError(
                f"min_count = {self.min_count} rewards of a prompt never come together in buffer_size = "
                f"{self.buffer_size}; make buffer_size larger."
            )
        self.tracker = PromptTracker(self.buffer_size, self.min_count)

    @property
    def min_images_per_prompt(self) -> int:
        """A picture that is left alone has no others to be compared with."""
        return 2 if self.advantage == "leave_one_out" else 1

    def collect(self, run: Run) -> Trajectory:
        """Scored trajectories with advantages from the rewards of all processes."""
        batch = run.sample()
        every = self._advantages(run, batch)
        batch.advantages = run.own(every, batch).clamp(-self.advantage_clip, self.advantage_clip)
        batch = select(batch, self.keep)
        if self.kl_weight:
            run.reference(batch, means=True)
        return batch

    def _advantages(self, run: Run, batch: Trajectory) -> Tensor:
        reward = run.gather(batch.total)
        match self.advantage:
            case "per_prompt":
                return self.tracker(run.gather_prompts(batch), reward)
            case "batch":
                return standardize(reward)
            case "leave_one_out":
                return leave_one_out(reward, run.gather(batch.group))

    def minibatches(self, run: Run, batch: Trajectory) -> Iterator[Trajectory]:
        """Whole prompts, `epochs` times."""
        for _ in range(self.epochs):
            yield from run.split(batch)

    def losses(self, run: Run, batch: Trajectory) -> Iterator[Tensor]:
        """Clipped surrogate (section 4.3), plus the KL penalty per dimension as the ratio is."""
        assert batch.advantages is not None
        steps = run.some_steps(batch, self.timestep_fraction)
        for rows, cols in run.cells(batch, torch.arange(len(batch))[:, None], steps):
            rows, cols = rows.flatten(), cols.flatten()
            dist, now = run.transition(batch, rows, cols)
            now, old = now / batch.dim, batch.log_probs[rows, cols] / batch.dim
            advantage = batch.advantages[rows].to(now)
            run.record("clip_fraction", ((now - old).exp() - 1).abs().gt(self.clip_range_mean).float())
            loss = policy_gradient(now, old, advantage, self.clip_range_mean)
            yield (loss + self._penalty(batch, dist, rows, cols)).sum() / (len(batch) * len(steps))

    def _penalty(self, batch: Trajectory, dist: Gaussian, rows: Tensor, cols: Tensor) -> Tensor | float:
        if batch.reference_means is None:
            return 0.0
        reference = Gaussian(batch.reference_means[rows, cols], dist.std.detach())
        return self.kl_weight * dist.kl(reference) / batch.dim

    def state_dict(self) -> dict[str, Any]:
        """The tracker's memory, for checkpoints."""
        return {"tracker": self.tracker.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.tracker.load_state_dict(state["tracker"])
