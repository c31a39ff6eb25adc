"""Best-of-N: the best of N independent samples; what every other method has to beat at equal compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from diffalign.bounds import Positive
from diffalign.search import Found, Search, Task


@dataclass
class BestOfN(Search):
    """n: samples drawn of each prompt. Costs n rollouts and n scores; needs no gradient."""

    n: Positive = 16

    def search(self, task: Task) -> Found:
        """See Search; every prompt's samples are computed in rounds, so that its path can be drawn."""
        for k in range(self.n):
            owner, member = task.everyone, torch.full_like(task.everyone, k)
            noise = task.noise(owner, member)
            latents = task.sample(noise, owner, task.seeds("steps", owner, member))
            task.offer(owner, latents, noise, task.score(latents, owner))
        return task.found()
