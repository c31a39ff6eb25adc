"""How the goldens of learned rewards are stored: NAME.safetensors with weights, pictures, prompts, scores.

Weights are 8-bit numbers times a power of two, and of tables of tokens only the rows that are used, so
that a file takes a few hundred KB. They are exactly what the official code ran with.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

PROMPTS = [
    "a photo of a red square",
    "Two  CATS, 3d &amp; flat!",
    "",
    "un café à Zürich, 猫 🐈",
    "very " * 200 + "long",
]


class Golden(NamedTuple):
    """weights by their official names, pictures as PIL images, scores by name, and what else was stored."""

    weights: dict[str, torch.Tensor]
    pictures: list[Image.Image]
    scores: dict[str, torch.Tensor]
    facts: dict


def awkward() -> list[Image.Image]:
    """Wide, tall, small, large, sharp edged, and 227 wide: each is resized or cropped in another way."""
    sizes = [(160, 48), (40, 150), (64, 64), (320, 280), (96, 100), (227, 224)]
    return [_picture(np.random.RandomState(i), *size) for i, size in enumerate(sizes)]


def _picture(random: np.random.RandomState, width: int, height: int) -> Image.Image:
    """A slope of colours with boxes of one colour and one of stripes."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x // width, 255 * y // height, (x + y) % 256], -1).astype(np.uint8)
    for _ in range(12):
        left, top = random.randint(width), random.randint(height)
        pixels[top : top + height // 4, left : left + width // 4] = random.randint(0, 256, 3)
    pixels[: height // 3, : width // 3] = 255 * ((x + y) % 2)[: height // 3, : width // 3, None]
    return Image.fromarray(pixels)


OPENAI = {
    "visual.conv1": 32, "visual.class_embedding": 16, "visual.positional_embedding": 16,
    "token_embedding": 4, "positional_embedding": 4,
}  # fmt: skip
"""What the first norm of each tower sees, in OpenAI's names, and how much smaller `vary` makes it."""


def vary(model: torch.nn.Module, faint: dict[str, int]) -> None:
    """Make every weight tell: fresh norms are all ones and biases all zero, so that mixing them up changes nothing.

    Parameters whose names begin as `faint` says are divided, so that the epsilon of the norm behind them counts.
    """
    for name, value in model.named_parameters():
        if value.ndim == 1:
            value.data += 0.1 * torch.randn_like(value)
        value.data /= next((by for start, by in faint.items() if name.startswith(start)), 1)


def coarsen(
    state: dict[str, torch.Tensor], used: dict[str, list[int]], gain: float
) -> dict[str, torch.Tensor]:
    """Weights, the matrices enlarged by `gain`, that `save` can store exactly; unused rows become zero."""
    coarse = {}
    for name, value in state.items():
        value = value.float() * (gain if value.ndim > 1 else 1)
        if name in used:
            value = torch.zeros_like(value).index_copy(0, torch.tensor(used[name]), value[used[name]])
        coarse[name] = _unpack(*_pack(value))
    return coarse


def _pack(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = 2.0 ** torch.ceil(torch.log2(value.abs().max().clamp_min(1e-6) / 127))
    return (value / scale).round().to(torch.int8), scale


def _unpack(whole: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return whole.float() * scale


def save(name: str, weights, pictures, scores, **facts) -> None:
    """Writes NAME.safetensors beside this file. `facts` say by what, of which version, the scores were made."""
    tensors = {f"scores/{key}": value.float().contiguous() for key, value in scores.items()}
    for i, picture in enumerate(pictures):
        picture.save(file := io.BytesIO(), "PNG", optimize=True)
        tensors[f"picture/{i}"] = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    for key, value in weights.items():
        whole, scale = _pack(value)
        assert torch.equal(_unpack(whole, scale), value.float()), f"{key} was not coarsened"
        tensors[f"scale/{key}"] = scale
        if whole.ndim > 1 and len(whole) > 1000:
            rows = whole.flatten(1).any(1).nonzero().flatten()
            tensors |= {f"rows/{key}": rows.int(), f"length/{key}": torch.tensor([len(whole)])}
            whole = whole[rows]
        tensors[f"weights/{key}"] = whole.contiguous()
    facts = {"prompts": PROMPTS, **facts}
    save_file(tensors, Path(__file__).with_name(f"{name}.safetensors"), {"facts": json.dumps(facts)})


def load(name: str) -> Golden:
    """What `save` wrote."""
    with safe_open(Path(__file__).with_name(f"{name}.safetensors"), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()["facts"])
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        group, _, rest = key.partition("/")
        groups.setdefault(group, {})[rest] = value
    weights = {}
    for key, whole in groups["weights"].items():
        weights[key] = _unpack(whole, groups["scale"][key])
        if key in groups.get("rows", {}):
            full = torch.zeros(int(groups["length"][key]), *whole.shape[1:])
            weights[key] = full.index_copy(0, groups["rows"][key].long(), weights[key])
    pictures = [
        Image.open(io.BytesIO(groups["picture"][str(i)].numpy().tobytes()))
        for i in range(len(groups["picture"]))
    ]
    return Golden(weights, pictures, groups["scores"], facts)
