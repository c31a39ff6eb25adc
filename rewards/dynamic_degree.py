"""How much moves in a video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffalign_rewards import _motion

FASTEST = 0.05
"""The share of the blocks that counts: a moving object in a still scene is motion."""


class DynamicDegree:
    """Mean speed of the fastest 5 % of a video, in shorter sides of the picture a frame, in [0, 0.1].

    The idea is VBench's dynamic degree (Huang et al. 2024, arXiv:2311.17982), without its threshold, and with
    classical optical flow in place of its network: block matching to whole pixels, then one step of Lucas and
    Kanade's (1981) for the rest. Moving cameras count as moving things do. A static video is 0.

    Looked at with 64 pixels on the shorter side; speeds above 1/16 of it a frame are not seen, and those of
    surfaces with a contrast of a grey level or two are underestimated. Flicker can look like motion: train
    with motion_smoothness beside it. Videos of 2 frames or more; differentiable, but zero gradient where
    nothing moves.
    """

    differentiable = video = True

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor:
        """Scores (B,) of videos (B, F, 3, H, W) in [0, 1]; prompts do not matter."""
        videos = _motion.small("dynamic_degree", images, fewest=2)
        here, there = videos[:, :-1].flatten(0, 1), videos[:, 1:].flatten(0, 1)
        way = _motion.search(lambda down, right: _motion.moved(there, down, right) - _motion.moved(here))
        flow = way + _motion.remainder(here, _motion.follow(there, way))
        speed = torch.linalg.vector_norm(flow, dim=1).flatten(1) / _motion.SIDE
        fastest = speed.topk(max(1, round(FASTEST * speed.shape[1])), dim=1).values.mean(1)
        each: Tensor = fastest.reshape(len(videos), -1).mean(1)
        return each
