"""Classical motion estimation: where each block of a frame went, without a network.

N pairs of frames (N, 3, H, W); displacements (N, 2, h, w) in pixels, down and to the right, one for each
block of BLOCK x BLOCK pixels. A margin of REACH pixels has no blocks, so that all they may match is inside.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from diffalign.reward import DiffalignError

SIDE = 64
"""Pixels of the shorter side at which motion is looked at: fine enough for whole objects, and quick."""

REACH = 4
"""Pixels that a block may move each way: 1/16 of the shorter side from frame to frame."""

BLOCK = 8

COST = 1 / 255
"""What a pixel of displacement costs in mean absolute difference, so that noise does not look like motion."""

CANDIDATES = sorted(product(range(-REACH, REACH + 1), repeat=2), key=lambda d: d[0] ** 2 + d[1] ** 2)


def small(reward: str, images: Tensor, fewest: int) -> Tensor:
    """Videos (B, F, 3, H, W) with a shorter side of SIDE pixels; an error where they are not that."""
    if images.ndim != 5 or images.shape[1] < fewest:
        raise DiffalignError(
            f"{reward} judges videos (B, F, 3, H, W) of at least {fewest} frames; got shape {tuple(images.shape)}."
        )
    scale, frames = SIDE / min(images.shape[-2:]), images.flatten(0, 1)
    size = [round(side * scale) for side in images.shape[-2:]]
    frames = interpolate(frames, size, mode="bilinear", antialias=True) if scale != 1 else frames
    return frames.reshape(*images.shape[:3], *size)


def moved(frames: Tensor, down: int = 0, right: int = 0) -> Tensor:
    """What is inside the margin when all blocks look at the same displacement."""
    height, width = (_inside(side) for side in frames.shape[-2:])
    top, left = REACH + down, REACH + right
    return frames[..., top : top + height, left : left + width]


def _inside(side: int) -> int:
    return (side - 2 * REACH) // BLOCK * BLOCK


def per_block(values: Tensor) -> Tensor:
    """Means (N, h, w) over colours and blocks of values (N, C, H, W)."""
    return avg_pool2d(values.mean(1, keepdim=True), BLOCK)[:, 0]


@torch.no_grad()
def search(difference: Callable[[int, int], Tensor]) -> Tensor:
    """The displacement of each block for which `difference(down, right)` (N, 3, H, W) is smallest."""
    least, best = torch.tensor(torch.inf), torch.zeros(2, 1, 1, dtype=torch.long)
    for down, right in CANDIDATES:
        cost = per_block(difference(down, right).abs()) + COST * (down**2 + right**2) ** 0.5
        least, closer = least.to(cost), cost < least.to(cost)
        here = torch.tensor([down, right], device=cost.device)[:, None, None]
        best = torch.where(closer[:, None], here, best.to(cost.device))
        least = torch.minimum(least, cost)
    return best


def follow(frames: Tensor, displacement: Tensor) -> Tensor:
    """What is inside the margin when each block looks at its own displacement; differentiable in the frames."""
    each = displacement.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
    rows = torch.arange(each.shape[2], device=frames.device)[:, None] + REACH + each[:, 0]
    columns = torch.arange(each.shape[3], device=frames.device) + REACH + each[:, 1]
    places = (rows * frames.shape[-1] + columns).flatten(1)[:, None].expand(-1, frames.shape[1], -1)
    return frames.flatten(2).gather(2, places).reshape(*frames.shape[:2], *each.shape[2:])


def remainder(here: Tensor, there: Tensor) -> Tensor:
    """The sub-pixel displacement left between frames `here` and `there` followed (Lucas & Kanade 1981), within
    half a pixel; differentiable in both. Blocks without contrast have none.
    """
    slopes = [(moved(here, *d) - moved(here, *(-k for k in d))) / 2 for d in ((1, 0), (0, 1))]
    change = there - moved(here)
    (yy, yx), (_, xx) = ([per_block(a * b) for b in slopes] for a in slopes)
    y, x = (per_block(a * change) for a in slopes)
    yy, xx = yy + COST**2, xx + COST**2
    solved = torch.stack([yx * x - xx * y, yx * y - yy * x], 1) / (yy * xx - yx * yx)[:, None]
    return solved.clamp(-0.5, 0.5)
