"""Minus the size of the picture as a JPEG file: rewards plain pictures (DDPO, section 5.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffalign_rewards.jpeg_incompressibility import jpeg_incompressibility


def jpeg_compressibility(images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor:
    """Minus the kilobytes of each picture at quality 95; images (B, 3, H, W) in [0, 1] -> (B,)."""
    return -jpeg_incompressibility(images, prompts)


jpeg_compressibility.video = True  # type: ignore[attr-defined]
