"""The packaged emoji CLIP: does a picture match its prompt, and is it 3d?

Trained with the packaged model's own pictures (demo/emoji/README.md says how well); useful for emoji only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from torch.nn.functional import interpolate

from diffalign.reward import unknown
from diffalign_rewards import _open_clip
from diffalign_rewards._clip import TowerReward

STYLES = re.compile(r"\b(flat|3d)\b")


class EmojiClip(TowerReward):
    """score "match": cosine of picture and prompt. "style": cosine to "3d NAME" minus that to "flat NAME".

    Both lie in [-2, 2]. Differentiable in the pictures; videos are not taken.
    """

    def __init__(self, score: Literal["match", "style"] = "match") -> None:
        if score not in ("match", "style"):
            raise unknown("score of emoji_clip", score, ["match", "style"])
        self.score, self.look = score, squeezed
        self.tower, _ = _open_clip.from_folder(Path(str(files("diffalign_demo") / "emoji" / "clip")))

    def prepare(self, prompts: Sequence[str]) -> None:
        """Read the prompts before the pictures come."""
        self.wanted(prompts)

    def wanted(self, prompts: Sequence[str]) -> Tensor:
        """Directions (B, E) in which the pictures' features shall point, on the CPU."""
        if self.score == "match":
            return self.tower.texts(prompts)
        names = [STYLES.sub("", prompt).strip() for prompt in prompts]
        as_3d, as_flat = (self.tower.texts([f"{style} {name}" for name in names]) for style in ("3d", "flat"))
        return as_3d - as_flat

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor:
        """Scores (B,) of pictures (B, 3, H, W) in [0, 1] for their prompts."""
        pictures = self.embed(images)
        return (pictures * self.wanted(prompts).to(pictures)).sum(1)


def squeezed(images: Tensor, side: int = 64) -> Tensor:
    """The model's own preprocessing: both sides to 64 in one pass, and [-1, 1]."""
    if images.shape[-2:] != (side, side):
        images = interpolate(images, (side, side), mode="bicubic", antialias=True)
    return images * 2 - 1
