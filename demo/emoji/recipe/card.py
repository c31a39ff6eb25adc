"""Step `card`: sample grids for the model card, and how well samples match their prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from .vae import pixels

SHOWN = [
    "3d grinning face",
    "3d red apple",
    "flat red heart",
    "dog face",
    "flat sun",
    "blue car",
    "flat deciduous tree",
    "3d white medium star",
    "3d cat face",
    "flat crying face",
    "3d rocket",
    "guitar",
    "3d house building",
    "flat tropical fish",
    "3d tulip",
    "flat clock face one oclock",
    "3d robot face",
    "flat hamburger",
    "3d banana",
    "flat airplane",
    "3d pig face",
    "flat frog face",
    "orange book",
    "3d pizza",
    "slice of pizza",
    "soccer ball",
    "flat umbrella",
    "3d snowman",
    "mushroom",
    "green heart",
]


def grids(out: Path) -> None:
    """Writes `samples.png` (30 known prompts), `heldout.png` (the 64 held-out prompts) and `card.json`."""
    pipeline = StableDiffusionPipeline.from_pretrained(out / "base")
    pipeline.set_progress_bar_config(disable=True)
    heldout = (out / "prompts/heldout.txt").read_text().splitlines()
    pictures = sample(pipeline, heldout)
    tile(sample(pipeline, SHOWN), 10).save(out / "samples.png", optimize=True)
    tile(pictures, 16).save(out / "heldout.png", optimize=True)
    (out / "card.json").write_text(json.dumps(match(out, pictures, heldout), indent=2) + "\n")


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    seed: int = 0,
    steps: int = 20,
    guidance: float = 3.0,
) -> list[Image.Image]:
    """One picture per prompt, one seed for all."""
    generator = torch.Generator().manual_seed(seed)
    return [
        picture
        for i in range(0, len(prompts), 16)
        for picture in pipeline(
            prompts[i : i + 16], num_inference_steps=steps, guidance_scale=guidance, generator=generator
        ).images
    ]


def tile(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Pictures row by row on white."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (64 * columns, 64 * rows), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * 64, i // columns * 64))
    return sheet


def judge(out: Path) -> tuple[open_clip.CLIP, Any]:
    """The CLIP in `out/clip` and its tokenizer."""
    folder = f"local-dir:{out / 'clip'}"
    return open_clip.create_model(folder).eval(), open_clip.get_tokenizer(folder)


def batch(pictures: list[Image.Image]) -> Tensor:
    """Pictures as (N, 3, 64, 64) in [−1, 1]."""
    return pixels(torch.from_numpy(np.stack([np.array(picture) for picture in pictures])))


@torch.no_grad()
def match(out: Path, pictures: list[Image.Image], prompts: list[str]) -> dict[str, float]:
    """How well pictures fit their prompts by `out/clip`: cosine, and how often no other prompt fits better."""
    model, tokenizer = judge(out)
    texts = model.encode_text(tokenizer(prompts), normalize=True)
    similar = model.encode_image(batch(pictures), normalize=True) @ texts.T
    return {
        "cosine": float(similar.diagonal().mean()),
        "cosine_of_other_prompts": float(similar.mean()),
        "top1": float((similar.argmax(1) == torch.arange(len(prompts))).float().mean()),
    }
