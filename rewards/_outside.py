"""What rewards over libraries outside torch share: finding the library, and pictures as it wants them."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from torch import Tensor

from diffalign.reward import DiffalignError
from diffalign_rewards import _pixels


def library(name: str, extra: str) -> Any:
    """The module `name`, which the extra installs; the reward that needs it bears the extra's name."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DiffalignError(
            f"{extra} needs {name.partition('.')[0]} ({error}). Install it: pip install 'diffalign[{extra}]'."
        ) from error


def arrays(images: Tensor) -> list[np.ndarray]:
    """Pictures (B, 3, H, W) in [0, 1] as B arrays (H, W, 3) of bytes, red first."""
    levels = (_pixels.to_8_bits(images.detach().float()) * 255).round().byte()
    return list(levels.permute(0, 2, 3, 1).cpu().numpy())
