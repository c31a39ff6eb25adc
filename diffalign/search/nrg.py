"""Noise-aware reward guidance (Flow-NRG, arXiv 2501.13918): sample along the gradient of a reward of noisy latents."""

from __future__ import annotations

from dataclasses import dataclass

from diffalign.guided import Guided
from diffalign.policy import Policy
from diffalign.reward import Reward
from diffalign.search._altering import Altering


@dataclass
class NRG(Altering):
    """guide: the noise-aware reward to follow; w: how much, samples are tilted by exp(w guide).

    decoded: the guide is one of pictures, asked about the denoiser's present guess at x_0; biased, see `Guided`.
    Costs one gradient of the guide a step and sample besides what `method` costs.
    """

    guide: Reward
    w: float = 1.0
    decoded: bool = False

    def altered(self, policy: Policy) -> Policy:
        """The guided policy; an error if the reward cannot guide."""
        return Guided(policy, self.guide, self.w, self.decoded)
