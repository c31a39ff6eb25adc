"""Between, and beyond, what a pipeline was and what it was tuned to (RL guidance).

Dimensions: B samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffalign.altered import Altered
from diffalign.errors import DiffalignError
from diffalign.models.adapters import POLICY, REFERENCE
from diffalign.models.conditioning import Conditioning
from diffalign.searching.ledger import costs

if TYPE_CHECKING:
    from diffalign.policy import Policy


class Mixed(Altered):
    """f = f_ref + w (f_tuned - f_ref), each after classifier-free guidance (RLG, arXiv 2508.21016).

    w = 0 is the reference, 1 the tuned policy, and each of these costs one pass; any other number two.
    Step by step this is p_ref^(1-w) p_tuned^w exactly; of the samples it holds only where the reward is
    linear (docs/search.md). `tuned` may be a snapshot. Within `using(name)` it predicts as that variant, unmixed.
    """

    def __init__(self, policy: Policy, w: float, tuned: str = POLICY) -> None:
        super().__init__(policy)
        self.w, self.tuned, self.variant = w, tuned, POLICY
        if not policy.differs(tuned):
            raise DiffalignError(
                f"RL guidance mixes the reference with a tuned adapter, and {tuned!r} predicts as the reference does: "
                "it has no LoRA, or an untrained one. Load a trained one first: policy.load(FOLDER), or "
                "`adapter: FOLDER` in a config."
            )

    def predict(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The mixed output (B, ...) at latents x (B, ...) and timesteps t (B,), in float32 where two are mixed."""
        if self.variant != POLICY:
            return self.policy.predict(x, t, cond)
        if self.w in (0, 1):
            return self._of(self.tuned if self.w else REFERENCE, x, t, cond)
        reference = self._of(REFERENCE, x, t, cond).float()
        mixed = reference + self.w * (self._of(self.tuned, x, t, cond).float() - reference)
        self._refuse_recomputing(mixed)
        return mixed

    def costs(self, i: Tensor) -> dict[str, Tensor]:
        """See `ledger.costs`."""
        passes = 1 if self.variant != POLICY or self.w in (0, 1) else 2
        return {kind: passes * count for kind, count in costs(self.policy, i).items()}

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """See Policy; "policy" is the mixture."""
        before = self.variant
        with self.policy.using(name):
            self.variant = name
            try:
                yield
            finally:
                self.variant = before

    def _of(self, variant: str, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        with self.policy.using(variant):
            return self.policy.predict(x, t, cond)

    def _refuse_recomputing(self, output: Tensor) -> None:
        """Checkpointing inside the denoiser computes it again in backward, when neither variant is active."""
        inside = getattr(getattr(self.policy, "denoiser", None), "is_gradient_checkpointing", False)
        if inside and torch.is_grad_enabled() and output.requires_grad:
            raise DiffalignError(
                "gradients through mixed variants would be computed with the wrong adapter under "
                "gradient_checkpointing; make the policy with gradient_checkpointing=False."
            )
