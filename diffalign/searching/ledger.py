"""What a search costs, prompt by prompt: passes of the denoiser, scored pictures, and backward passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cost:
    """What one prompt took.

    denoiser_calls: latents that passed the denoiser; reward_calls: pictures that every reward scored;
    gradients: pictures, or noisy latents, that a reward's gradient came back to; lost: scores that were not finite.
    """

    denoiser_calls: int = 0
    reward_calls: int = 0
    gradients: int = 0
    lost: int = 0


def costs(policy: object, i: Tensor) -> dict[str, Tensor]:
    """What one prediction of a policy takes for samples at grid indices i (B,): counts (B,) by kind.

    One pass of the denoiser, unless the policy has a method `costs` that says otherwise.
    """
    own: Callable[[Tensor], dict[str, Tensor]] | None = getattr(policy, "costs", None)
    return own(i) if own else {"denoiser_calls": torch.ones_like(i)}


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

    def restore(self, prompt: int, cost: Cost) -> None:
        """Take over what a prompt took before it was stopped."""
        for kind, count in self.counts.items():
            count[prompt] = getattr(cost, kind)
