"""What the official scorers do to a picture before they look at it, on tensors.

Pictures are (B, 3, H, W) in [0, 1]. Where no gradient is wanted the results are PIL's own, bit for bit,
so that scores equal the official ones; where one is wanted nothing is rounded, and they are smooth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Mode = Literal["bicubic", "bilinear"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(images: Tensor, size: tuple[int, int], mode: Mode = "bicubic") -> Tensor:
    """PIL's antialiased `Image.resize` to (height, width): columns, then rows, 8 bits after each pass.

    PIL from 13 on takes the rows first where the height shrinks much more than the width; here as before.
    """
    levels, (height, width) = _to_levels(_wide(images) * 255), size
    if width != images.shape[-1]:
        levels = _to_levels(levels @ _taps(images.shape[-1], width, mode).to(levels).T)
    if height != images.shape[-2]:
        levels = _to_levels(_taps(images.shape[-2], height, mode).to(levels) @ levels)
    return levels.to(images.dtype) / 255


def to_8_bits(images: Tensor) -> Tensor:
    """Clamped to [0, 1], and rounded to 1/255 where no gradient is wanted."""
    return _to_levels(images * 255) / 255


def _to_levels(values: Tensor) -> Tensor:
    """Clamped to 0..255, and rounded, halves up as PIL does, where no gradient is wanted."""
    values = values.clamp(0, 255)
    return values if values.requires_grad else (values + 0.5).floor()


def _wide(images: Tensor) -> Tensor:
    """Double precision where sums have to be exact; MPS has none, and is a level off now and then."""
    return images if images.requires_grad or images.device.type == "mps" else images.double()


@lru_cache(maxsize=8)
def _taps(old: int, new: int, mode: Mode) -> Tensor:
    """How much each of `old` pixels gives to each of `new`, (new, old), in PIL's 22 fractional bits."""
    reach, kernel = (2, _cubic) if mode == "bicubic" else (1, _triangle)
    stretch, pixel = max(old / new, 1), torch.arange(old, dtype=torch.float64)
    centre = (torch.arange(new, dtype=torch.float64)[:, None] + 0.5) * old / new
    first, last = (centre - reach * stretch + 0.5).trunc(), (centre + reach * stretch + 0.5).trunc()
    taps = kernel((pixel - centre + 0.5).abs() / stretch) * ((first <= pixel) & (pixel < last))
    taps = taps / taps.sum(1, keepdim=True) * 2**22
    return (taps.abs() + 0.5).floor() * taps.sign() / 2**22


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2, for distances."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _triangle(x: Tensor) -> Tensor:
    return (1 - x).clamp_min(0)


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
