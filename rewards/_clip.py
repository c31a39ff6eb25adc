"""What rewards over a CLIP model share: each checkpoint is loaded once, each prompt read once, and the
pictures of one `sharing()` block are looked at once, whatever number of rewards want their features.

B pictures, E features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diffalign.reward import once
from diffalign_rewards import _pixels

REMEMBERED = 20_000
"""Prompts whose features are kept; 80 MB at 1,024 features."""

AT_ONCE = 64
"""Prompts read in one pass."""

Look = Callable[[Tensor], Tensor]
"""Preprocessing; hashable, so that rewards that prepare pictures alike share the tower's features."""


class Tower:
    """A frozen CLIP model in float32. `model` has open_clip's methods, `tokenize` makes ids of prompts."""

    def __init__(self, model: Any, tokenize: Callable[[list[str]], Tensor]) -> None:
        self.model = model.float().eval().requires_grad_(False)
        self.tokenize = tokenize
        self.remembered: dict[str, Tensor] = {}

    def pictures(self, images: Tensor, look: Look) -> Tensor:
        """Unit features (B, E) of pictures (B, 3, H, W) in [0, 1], on their device."""
        return once((self, look), images, lambda: self._see(images, look))

    def _see(self, images: Tensor, look: Look) -> Tensor:
        model = self.model.to(images.device)
        return normalize(model.encode_image(look(images.to(model.logit_scale.dtype))), dim=-1)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit features (B, E) of prompts, on the CPU; each prompt is read once and remembered."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.remembered]
        for some in (new[i : i + AT_ONCE] for i in range(0, len(new), AT_ONCE)):
            ids = self.tokenize(some).to(self.model.logit_scale.device)
            features = normalize(self.model.encode_text(ids), dim=-1).cpu()
            self.remembered.update(zip(some, features, strict=True))
        found = torch.stack([self.remembered[prompt] for prompt in prompts])
        for oldest in list(self.remembered)[:-REMEMBERED]:
            del self.remembered[oldest]
        return found


class TowerReward:
    """What every reward over one tower can do."""

    differentiable = True
    tower: Tower
    look: Look

    def prepare(self, prompts: Sequence[str]) -> None:
        """Read the prompts before the pictures come."""
        self.tower.texts(prompts)

    def embed(self, images: Tensor) -> Tensor:
        """Unit features (B, E) of pictures (B, 3, H, W) in [0, 1]."""
        return self.tower.pictures(images, self.look)

    def cosine(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine (B,) of every picture with its prompt."""
        pictures = self.embed(images)
        return (pictures * self.tower.texts(prompts).to(pictures)).sum(1)


@dataclass(frozen=True)
class Resized:
    """Short side to `size` and the middle cut out, or both sides to `size` (squash); then normalised."""

    size: tuple[int, int] = (224, 224)
    squash: bool = False
    mode: _pixels.Mode = "bicubic"
    mean: tuple[float, ...] = _pixels.CLIP_MEAN
    std: tuple[float, ...] = _pixels.CLIP_STD
    offset: Callable[[float], int] = round

    def __call__(self, images: Tensor) -> Tensor:
        """What the model is shown of pictures (B, 3, H, W) in [0, 1]."""
        if self.squash:
            images = _pixels.resize(images, self.size, self.mode)
        else:
            short = _pixels.short_side(images, self.size[0], self.mode)
            images = _pixels.center_crop(short, self.size[0], self.offset)
        return _pixels.normalise(images, self.mean, self.std)
