"""Pictures that are drawn on the spot."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import to_tensor


def text(
    words: str, size: tuple[int, int], height: int, fill: str = "black", back: str = "white"
) -> torch.Tensor:
    """Words of this height in the middle of a picture (1, 3, H, W)."""
    picture = Image.new("RGB", size, back)
    font = ImageFont.load_default(height)
    ImageDraw.Draw(picture).text((size[0] / 2, size[1] / 2), words, fill, font, anchor="mm")
    return to_tensor(picture)[None]


def face() -> Image.Image:
    """A cartoon's face."""
    picture = Image.new("RGB", (256, 256), (250, 220, 190))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((60, 40, 196, 220), (224, 172, 140))
    draw.pieslice((60, 20, 196, 140), 180, 360, (60, 30, 10))
    draw.arc((100, 150, 160, 190), 0, 180, (180, 40, 60), width=6)
    for left in (95, 145):
        draw.ellipse((left, 100, left + 20, 112), "white")
        draw.ellipse((left + 7, 102, left + 15, 110), "black")
    return picture
