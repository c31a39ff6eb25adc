"""What a search costs, prompt by prompt: passes of the denoiser, scored pictures, and backward passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """What one prompt took.

    denoiser_calls: latents that passed the denoiser; reward_calls: pictures that every reward scored;
    gradients: of those, how many a gradient came back through; lost: scores that were not finite.
    """

    denoiser_calls: int = 0
    reward_calls: int = 0
    gradients: int = 0
    lost: int = 0


class Ledger:
    """Costs of P prompts, counted where they arise."""

    KINDS = tuple(Cost.__dataclass_fields__)

    def __init__(self, prompts: int) -> None:
        self.counts = {kind: torch.zeros(prompts, dtype=torch.long) for kind in self.KINDS}

    def add(self, kind: str, owner: Tensor) -> None:
        """One more of this kind for each entry of owner (B,), which names prompts."""
        self.counts[kind].index_add_(0, owner.cpu(), torch.ones(len(owner), dtype=torch.long))

    def of(self, prompt: int) -> Cost:
        """What a prompt took so far."""
        return Cost(**{kind: int(count[prompt]) for kind, count in self.counts.items()})
