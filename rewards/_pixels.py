"""What the official scorers do to a picture before they look at it, on tensors.

Pictures are (B, 3, H, W) in [0, 1]. Where no gradient is wanted the results are PIL's own, rounded to
8 bits after each pass, so that scores equal the official ones; where one is wanted they are smooth
and differ from those by at most about a grey level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Mode = Literal["bicubic", "bilinear"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(images: Tensor, size: tuple[int, int], mode: Mode = "bicubic") -> Tensor:
    """PIL's antialiased `Image.resize` to (height, width): columns, then rows, 8 bits after each pass."""
    images, (height, width) = to_8_bits(images), size
    for shape in ((images.shape[-2], width), (height, width)):
        if shape != images.shape[-2:]:
            images = to_8_bits(interpolate(images, shape, mode=mode, antialias=True))
    return images


def to_8_bits(images: Tensor) -> Tensor:
    """Clamped to [0, 1], and rounded to 1/255 where no gradient is wanted."""
    images = images.clamp(0, 1)
    return images if images.requires_grad else (images * 255).round() / 255


def short_side(images: Tensor, size: int, mode: Mode = "bicubic") -> Tensor:
    """Resize so that the shorter side is `size`; the longer one is rounded down."""
    height, width = images.shape[-2:]
    short = min(height, width)
    return resize(images, (size * height // short, size * width // short), mode)


def center_crop(images: Tensor, size: int, offset: Callable[[float], int] = round) -> Tensor:
    """The middle size x size. `offset` rounds the half pixel: `round` as torchvision, `int` as transformers."""
    top, left = (offset((side - size) / 2) for side in images.shape[-2:])
    return images[..., top : top + size, left : left + size]


def normalise(
    images: Tensor, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD
) -> Tensor:
    """(images - mean) / std for each colour; CLIP's constants unless others are given."""
    shift, scale = (torch.tensor(v, dtype=images.dtype, device=images.device) for v in (mean, std))
    return (images - shift[:, None, None]) / scale[:, None, None]
