"""RL guidance (arXiv 2508.21016): sample with more, or with less, of what tuning changed."""

from __future__ import annotations

from dataclasses import dataclass

from diffalign.mixed import Mixed
from diffalign.policy import Policy
from diffalign.search._altering import Altering


@dataclass
class RLGuidance(Altering):
    """w: 0 is the reference, 1 the tuned policy, above 1 beyond it (1 to 3 is usual); see `Mixed`.

    Doubles the denoiser calls of `method`, but for w = 0 and w = 1.
    """

    w: float = 2.0

    def altered(self, policy: Policy) -> Policy:
        """The mixture; an error if the policy is not tuned."""
        return Mixed(policy, self.w)
