"""The packaged emoji CLIP: does a picture match its prompt, and is it 3d?

Trained with the packaged model's own pictures (demo/emoji/README.md says how well); useful for emoji only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

import open_clip
import torch
from torch import Tensor
from torch.nn.functional import interpolate

STYLES = re.compile(r"\b(flat|3d)\b")


class EmojiClip:
    """score "match": cosine of picture and prompt. "style": cosine to "3d NAME" minus that to "flat NAME".

    Both lie in [-2, 2]. Differentiable in the pictures; videos are not taken.
    """

    differentiable = True

    def __init__(self, score: Literal["match", "style"] = "match") -> None:
        self.score = score
        self.model, self.tokenizer = load()

    def embed(self, images: Tensor) -> Tensor:
        """Unit features (B, E) of pictures (B, 3, H, W) in [0, 1]."""
        images, size = images.to(self.model.logit_scale.dtype), self.model.visual.image_size
        if images.shape[-2:] != size:
            images = interpolate(images, size, mode="bicubic", antialias=True)
        features: Tensor = self.model.to(images.device).encode_image(images * 2 - 1, normalize=True)
        return features

    @torch.no_grad()
    def texts(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Unit features (B, E) of prompts."""
        distinct = list(dict.fromkeys(prompts))
        features = self.model.to(device).encode_text(self.tokenizer(distinct).to(device), normalize=True)
        return torch.stack([features[distinct.index(prompt)] for prompt in prompts])

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor:
        """Scores (B,) of pictures (B, 3, H, W) in [0, 1] for their prompts."""
        if self.score == "match":
            wanted = self.texts(prompts, images.device)
        else:
            names = [STYLES.sub("", prompt).strip() for prompt in prompts]
            as_3d, as_flat = (
                self.texts([f"{style} {n}" for n in names], images.device) for style in ("3d", "flat")
            )
            wanted = as_3d - as_flat
        return (self.embed(images) * wanted).sum(1)


@lru_cache
def load() -> tuple[Any, Any]:
    """The model in float32 and its tokenizer; read once."""
    name = f"local-dir:{files('diffalign_demo') / 'emoji' / 'clip'}"
    return open_clip.create_model(name).float().eval().requires_grad_(False), open_clip.get_tokenizer(name)
