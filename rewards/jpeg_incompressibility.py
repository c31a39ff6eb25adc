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
    """Kilobytes (1,000 bytes) of each picture at quality 95; images (B, 3, H, W) in [0, 1] -> (B,).

    Of a video (B, F, 3, H, W): the mean over its frames.
    """
    frames = images.reshape(len(images), -1, *images.shape[-3:])
    pixels = (frames.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 1, 3, 4, 2).cpu()
    return torch.tensor([sum(map(kilobytes, each)) / len(each) for each in pixels])


jpeg_incompressibility.video = True  # type: ignore[attr-defined]


def kilobytes(pixels: Tensor) -> float:
    """Size of one uint8 picture (H, W, 3) as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "JPEG", quality=QUALITY)
    return buffer.tell() / 1000
