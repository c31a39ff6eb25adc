"""How smoothly a video moves: whether each frame is where its neighbours say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffalign_rewards import _motion


class MotionSmoothness:
    """1 - mean absolute difference between every inner frame and what its two neighbours predict, in [0, 1].

    The idea, and the scale, are VBench's motion smoothness (Huang et al. 2024, arXiv:2311.17982), with a
    classical interpolation in place of its network: each block is the mean of the blocks it came from and goes
    to, found by bidirectional block matching (Choi, Lee & Ko 2000). Even motion of
    up to 1/16 of the shorter side a frame costs next to nothing, jitter, flicker and cuts do.

    Looked at with 64 pixels on the shorter side, without a margin of 4. A static video is perfectly smooth:
    train with dynamic_degree beside it. Videos of 3 frames or more; differentiable.
    """

    differentiable = video = True

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor:
        """Scores (B,) of videos (B, F, 3, H, W) in [0, 1]; prompts do not matter."""
        videos = _motion.small("motion_smoothness", images, fewest=3)
        count = videos.shape[1] - 2
        before, now, after = (videos[:, k : k + count].flatten(0, 1) for k in range(3))

        def missed(down: int, right: int) -> Tensor:
            between = (_motion.moved(before, -down, -right) + _motion.moved(after, down, right)) / 2
            return between - _motion.moved(now)

        way = _motion.search(missed)
        between = (_motion.follow(before, -way) + _motion.follow(after, way)) / 2
        return 1 - (between - _motion.moved(now)).abs().reshape(len(videos), -1).mean(1)
