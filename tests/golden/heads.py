"""A random head of LAION's aesthetic predictor: drawn again by whoever needs it, as it is too large to store."""

import numpy as np
import torch

LAYERS = {0: (1024, 768), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}


def aesthetic() -> dict[str, torch.Tensor]:
    """The official keys and shapes; whole numbers (numpy never changes these) times powers of two."""
    random, weights = np.random.RandomState(0), {}
    for place, (out, into) in LAYERS.items():
        drawn = random.randint(-127, 128, size=(out, into)), random.randint(-127, 128, size=out)
        weight, bias = (torch.tensor(values, dtype=torch.float32) for values in drawn)
        weights[f"layers.{place}.weight"] = weight * 2.0 ** -round(5 + np.log2(into) / 2)
        weights[f"layers.{place}.bias"] = bias / 128
    return weights
