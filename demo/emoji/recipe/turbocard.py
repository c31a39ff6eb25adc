"""The one-step model beside the base: a grid of the held-out prompts, and how well, how varied, in which style."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from .. import fuse_turbo
from . import card, clip

COLUMNS, SEEDS, VARIED = 16, 8, 16
Draw = Callable[[list[str], int], list[Image.Image]]


def samplers(out: Path) -> dict[str, Draw]:
    """What is compared, by name and steps: (prompts, seed) → pictures; equal seeds mean equal noise."""
    base, fast = (StableDiffusionPipeline.from_pretrained(out / "base") for _ in range(2))
    fuse_turbo(fast, out / "turbo")
    for pipeline in (base, fast):
        pipeline.set_progress_bar_config(disable=True)
    turbo = {f"turbo {steps}": _draw(fast, steps, 1.0) for steps in (1, 2, 4)}
    return {"base 20": _draw(base, 20, 3.0), **turbo}


def _draw(pipeline: StableDiffusionPipeline, steps: int, guidance: float) -> Draw:
    return lambda prompts, seed: card.sample(pipeline, prompts, seed, steps, guidance)


def compare(out: Path) -> None:
    """Writes `turbo.png` (in bands of four rows: the base, then 1, 2 and 4 steps) and `turbo/card.json`."""
    heldout = (out / "prompts/heldout.txt").read_text().splitlines()
    sheets, numbers = [], {}
    for name, draw in samplers(out).items():
        sheets.append(pictures := draw(heldout, 0))
        numbers[name] = card.match(out, pictures, heldout) | variety(out, draw, heldout)
    bands = range(0, len(heldout), COLUMNS)
    rows = [picture for i in bands for sheet in sheets for picture in sheet[i : i + COLUMNS]]
    card.tile(rows, COLUMNS).save(out / "turbo.png", optimize=True)
    (out / "turbo/card.json").write_text(json.dumps(numbers, indent=2) + "\n")


@torch.no_grad()
def variety(out: Path, draw: Draw, heldout: list[str]) -> dict[str, float]:
    """How often the style is the one asked for, and how far apart pictures of one prompt are.

    `style`: of all held-out prompts in both styles, those whose picture the CLIP finds nearer to the style
    asked for. `diversity`: 1 − cosine between pictures of a prompt (16 prompts, 8 seeds).
    """
    model, tokenizer = card.judge(out)
    texts = {style: [f"{style} {name}" for name in heldout] for style in clip.STYLES}
    flat, solid = (model.encode_text(tokenizer(texts[style]), normalize=True) for style in clip.STYLES)

    def features(pictures: list[Image.Image]) -> Tensor:
        found: Tensor = model.encode_image(card.batch(pictures), normalize=True)
        return found

    gaps = [(features(draw(texts[style], 1)) * (solid - flat)).sum(1) for style in clip.STYLES]
    seeds = torch.stack([features(draw(heldout[:VARIED], seed)) for seed in range(SEEDS)], 1)
    apart = 1 - (seeds @ seeds.mT)
    return {
        "style": float(torch.cat([gaps[0] < 0, gaps[1] > 0]).float().mean()),
        "diversity": float(apart.sum() / (VARIED * SEEDS * (SEEDS - 1))),
    }
