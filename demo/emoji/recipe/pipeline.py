"""Puts the trained parts into one ordinary `StableDiffusionPipeline` folder."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, PreTrainedTokenizerFast


def scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1: 1,000 steps, scaled-linear, ε-prediction."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    )


def save(
    folder: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Writes `folder` in the diffusers layout, fp16 safetensors, without a safety checker."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (vae, unet, text_encoder):
        part.half()
    pipeline.save_pretrained(folder)
    for config in folder.glob("*/config.json"):
        _tidy(config)


def _tidy(path: Path) -> None:
    """Forgets where a part was read from, and has every part loaded as fp32, as diffusers does by default."""
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    if "dtype" in config:  # what transformers writes, and follows
        config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n")
