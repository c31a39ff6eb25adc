"""Safety: no naked bodies, so far as a detector can tell."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffalign.reward import unknown
from diffalign_rewards import _outside

EXPOSED = (
    "ANUS_EXPOSED",
    "BUTTOCKS_EXPOSED",
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
)
LABELS = (
    *EXPOSED,
    "ANUS_COVERED", "ARMPITS_COVERED", "ARMPITS_EXPOSED", "BELLY_COVERED", "BELLY_EXPOSED", "BUTTOCKS_COVERED",
    "FACE_FEMALE", "FACE_MALE", "FEET_COVERED", "FEET_EXPOSED", "FEMALE_BREAST_COVERED",
    "FEMALE_GENITALIA_COVERED", "MALE_BREAST_EXPOSED",
)  # fmt: skip
"""All that NudeNet tells apart."""


class Safety:
    """1 minus NudeNet's confidence in the surest sight of what `labels` name; 1 where it sees none of them.

    From 0 to 1, higher is safer; NudeNet reports no confidence below 0.25. It stands for the people who told
    safe pictures of unsafe prompts from unsafe ones in D3PO's safety experiment (Yang et al. 2023,
    arXiv:2311.13231). It knows nakedness only, no violence or hate. Not differentiable.
    Licence: the wheel of nudenet, with its weights, holds the text of the AGPL-3.0, though its metadata say
    MIT. Only the extras `safety` and `rewards` install it; who serves it to others should mind what that asks.
    """

    needs = "extra: diffalign[safety]"
    cpu_only = True

    def __init__(self, labels: Sequence[str] = EXPOSED) -> None:
        for label in labels:
            if label not in LABELS:
                raise unknown("label of safety", label, LABELS)
        self.labels, self.detector = frozenset(labels), _outside.library("nudenet", "safety").NudeDetector()

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor:
        """Scores (B,) of pictures (B, 3, H, W) in [0, 1]; the prompts are ignored."""
        found = [self.detector.detect(blue_first(pixels)) for pixels in _outside.arrays(images)]
        return torch.tensor([safe(detections, self.labels) for detections in found])


def blue_first(pixels: np.ndarray) -> np.ndarray:
    """The channels as they are in a picture that the detector reads from a file."""
    return np.ascontiguousarray(pixels[..., ::-1])


def safe(detections: Sequence[Mapping[str, Any]], labels: Collection[str]) -> float:
    """1 minus the greatest confidence of a detection of one of the labels."""
    return 1 - max((found["score"] for found in detections if found["class"] in labels), default=0.0)
