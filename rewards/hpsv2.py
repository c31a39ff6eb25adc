"""Human Preference Score v2 and v2.1: which picture people would prefer for the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn.functional import interpolate, pad

from diffalign.reward import unknown
from diffalign_rewards import _open_clip, _pixels, _weights
from diffalign_rewards._clip import TowerReward

FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}


class HPSv2(TowerReward):
    """Cosine, in [-1, 1], of picture and prompt by CLIP ViT-H/14 fitted to people's choices among pictures.

    Wu et al. 2023, arXiv:2306.09341, github.com/tgxs002/HPSv2 (Apache-2.0). Compare scores of one version
    and one prompt only. Weights: a file for each version in xswu/HPSv2, or `path`. Differentiable.
    antialias: as the official code does with torchvision 0.17 or later; off as it did with earlier ones.
    """

    needs = "weights: xswu/HPSv2"

    def __init__(
        self, version: Literal["2.0", "2.1"] = "2.0", path: str | None = None, antialias: bool = True
    ) -> None:
        if version not in FILES:
            raise unknown("version of hpsv2", version, FILES)
        found = _weights.file("hpsv2", "xswu/HPSv2", FILES[version], path)
        self.tower = _open_clip.from_file("ViT-H-14", found.resolve())
        self.look = Padded(antialias=antialias)

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor:
        """Scores (B,) of pictures (B, 3, H, W) in [0, 1] for their prompts."""
        return self.cosine(images, prompts)


@dataclass(frozen=True)
class Padded:
    """Long side to `size`, black bars to a square, normalised; the resized picture may leave [0, 1]."""

    size: int = 224
    antialias: bool = True

    def __call__(self, images: Tensor) -> Tensor:
        """What the model is shown of pictures (B, 3, H, W) in [0, 1]."""
        images = _pixels.to_8_bits(images)
        scale = self.size / max(images.shape[-2:])
        sides = [max(1, round(side * scale)) for side in images.shape[-2:]]
        if scale != 1:
            images = interpolate(images, sides, mode="bicubic", antialias=self.antialias)
        top, left = ((self.size - side) // 2 for side in sides)
        bars = (left, self.size - sides[1] - left, top, self.size - sides[0] - top)
        return _pixels.normalise(pad(images, bars))
