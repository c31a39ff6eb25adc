"""U-Net families: Stable Diffusion 1.5, its inpainting variant, Stable Diffusion 2.1 and XL."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from .base import Family, clip_encoder, clip_tokenizer, randomise, vae

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PUBLISHED = {**BETAS, "skip_prk_steps": True, "set_alpha_to_one": False, "clip_sample": False}
"""The scheduler_config.json of all of them, which has keys of other schedulers too."""


def unet(seed: int, **config: Any) -> UNet2DConditionModel:
    """A two-level U-Net with cross-attention at the lower level."""
    blocks = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 16,
    }
    return randomise(UNet2DConditionModel(**{**blocks, **config}), seed)


def sd15_parts(**unet_config: Any) -> dict[str, Any]:
    """The components of stable-diffusion-v1-5, safety checker aside."""
    return {
        "vae": vae(1),
        "text_encoder": clip_encoder(2),
        "tokenizer": clip_tokenizer(),
        "unet": unet(3, **unet_config),
        "scheduler": PNDMScheduler.from_config(PUBLISHED),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def stable_diffusion() -> StableDiffusionPipeline:
    """stable-diffusion-v1-5."""
    return StableDiffusionPipeline(**sd15_parts())


def stable_diffusion_2() -> StableDiffusionPipeline:
    """stable-diffusion-2-1: v-prediction."""
    parts = sd15_parts(use_linear_projection=True)
    scheduler = DDIMScheduler.from_config({**PUBLISHED, "prediction_type": "v_prediction"})
    return StableDiffusionPipeline(**{**parts, "scheduler": scheduler})


def stable_diffusion_inpaint(log_variance: float = -30.0) -> StableDiffusionInpaintPipeline:
    """stable-diffusion-inpainting: mask and masked image are five more input channels.

    The masked image's latents are drawn at random by the VAE; as in trained ones, almost from a point.
    """
    pipe = StableDiffusionInpaintPipeline(**sd15_parts(in_channels=9))
    pipe.vae.quant_conv.weight[4:] = 0
    pipe.vae.quant_conv.bias[4:] = log_variance
    return pipe


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """stable-diffusion-xl-base-1.0: two text encoders, size conditioning, a VAE that needs float32."""
    size_conditioning = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + 24,
        "cross_attention_dim": 32,
        "use_linear_projection": True,
    }
    return StableDiffusionXLPipeline(
        vae=vae(1, scaling_factor=0.13025),
        text_encoder=clip_encoder(2),
        text_encoder_2=clip_encoder(3, projection=24, act="gelu"),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(4, **size_conditioning),
        scheduler=EulerDiscreteScheduler.from_config({**PUBLISHED, "timestep_spacing": "leading"}),
    )


SIZE = {"height": 16, "width": 16}

PICTURE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(1, 1, 16, 16)
MASK[..., 4:12, 4:12] = 1

FAMILIES = [
    Family("StableDiffusion", stable_diffusion, {**SIZE, "guidance_scale": 7.5}, {"guidance_scale": 1.0}),
    Family("StableDiffusion2", stable_diffusion_2, {**SIZE, "guidance_scale": 7.5}, {"guidance_scale": 1.0}),
    Family(
        "StableDiffusionInpaint",
        stable_diffusion_inpaint,
        {**SIZE, "guidance_scale": 7.5, "image": PICTURE, "mask_image": MASK},
        {"guidance_scale": 1.0},
    ),
    Family(
        "StableDiffusionXL", stable_diffusion_xl, {**SIZE, "guidance_scale": 5.0}, {"guidance_scale": 1.0}
    ),
]
