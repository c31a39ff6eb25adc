"""Size of the picture as a JPEG file: rewards detail (DDPO, Black et al. 2024, section 5.2)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

QUALITY = 95


def jpeg_incompressibility(images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor:
    """Kilobytes (1,000 bytes) of each picture at quality 95; images (B, 3, H, W) in [0, 1] -> (B,)."""
    pixels = (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return torch.tensor([kilobytes(p) for p in pixels.permute(0, 2, 3, 1).cpu()])


jpeg_incompressibility.cpu_only = True


def kilobytes(pixels: Tensor) -> float:
    """Size of one uint8 picture (H, W, 3) as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "JPEG", quality=QUALITY)
    return buffer.tell() / 1000
