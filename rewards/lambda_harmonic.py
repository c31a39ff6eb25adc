"""λ-harmonic reward of a subject: like its pictures, and as the prompt says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diffalign.reward import DiffalignError, Reward, Scores, capability
from diffalign_rewards import _references


class LambdaHarmonic:
    """1 / (λ / i + (1 - λ) / t) of image similarity i and text similarity t (RPO, Miao et al. 2024,
    arXiv:2407.12164).

    Both are (cosine + 1) / 2 in [0, 1]; i is the mean over the reference pictures, t is to the prompt.
    image_weight is λ: 1 is image similarity alone, 0 text similarity alone. references: a folder of pictures, or a list
    of files. encoder: any reward with `embed(images)` and `cosine(images, prompts)`, such as clip; the paper
    has ALIGN. Parts: image, text. Differentiable where the encoder is.
    """

    needs_reference = True

    def __init__(self, encoder: Reward, references: str | list[str], image_weight: float = 0.5) -> None:
        if lacking := [name for name in ("embed", "cosine") if not hasattr(encoder, name)]:
            raise DiffalignError(
                f"lambda_harmonic needs an encoder of pictures and texts, such as clip or emoji_clip; "
                f"{type(encoder).__name__} has no `{lacking[0]}`."
            )
        if not 0 <= image_weight <= 1:
            raise DiffalignError(
                f"the image_weight λ of lambda_harmonic is {image_weight}; it must be in [0, 1]."
            )
        self.encoder: Any = encoder
        self.image_weight, self.paths = image_weight, _references.find("lambda_harmonic", references)
        self.differentiable = capability(encoder, "differentiable")
        self._mean: Tensor | None = None

    def prepare(self, prompts: Sequence[str]) -> None:
        """Let the encoder read the prompts before the pictures come."""
        if hasattr(self.encoder, "prepare"):
            self.encoder.prepare(prompts)

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Scores:
        """Scores (B,) of pictures (B, 3, H, W) in [0, 1] for their prompts, with the two similarities."""
        features = normalize(self.encoder.embed(images), dim=1)
        image = (features @ self.subject(images.device).to(features) + 1) / 2
        text = (self.encoder.cosine(images, prompts) + 1) / 2
        return Scores(harmonic(image, text, self.image_weight), {"image": image, "text": text})

    @torch.no_grad()
    def subject(self, device: torch.device) -> Tensor:
        """Mean unit features (E,) of the reference pictures: a product with it is the mean cosine to them."""
        if self._mean is None:
            seen = [self.encoder.embed(some.to(device)).float() for some in _references.batches(self.paths)]
            self._mean = normalize(torch.cat(seen), dim=1).mean(0)
        return self._mean.to(device)


def harmonic(image: Tensor, text: Tensor, image_weight: float) -> Tensor:
    """Weighted harmonic mean (B,) of similarities (B,); near 0 where one of them that counts is."""
    return 1 / (image_weight / (image + 1e-8) + (1 - image_weight) / (text + 1e-8))
