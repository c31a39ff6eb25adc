"""Diffusion transformers for images without a CLIP: PixArt-Sigma, Sana, Qwen-Image."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderDC,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)

from .base import Family, masked_embeds, randomise, t5_encoder, t5_tokenizer, vae


def pixart_sigma() -> PixArtSigmaPipeline:
    """PixArt-Sigma-XL-2-1024-MS: T5 with masks, learned variance, DPM-Solver++ on linear betas."""
    transformer = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        cross_attention_dim=16,
    )
    return PixArtSigmaPipeline(
        transformer=randomise(transformer, 1),
        scheduler=DPMSolverMultistepScheduler(
            beta_end=0.02, beta_schedule="linear", timestep_spacing="linspace"
        ),
        vae=vae(2, scaling_factor=0.13025),
        text_encoder=t5_encoder(3),
        tokenizer=t5_tokenizer(),
    )


def sana() -> SanaPipeline:
    """Sana_1600M_1024px: linear attention, DC-AE, DPM-Solver++ on flow sigmas of shift 3."""
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
    )
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return SanaPipeline(
        transformer=randomise(transformer, 1),
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, **flow),
        vae=randomise(dc_ae(), 2, gain=0.7),
        text_encoder=None,
        tokenizer=None,
    )


def dc_ae() -> AutoencoderDC:
    """Sana's deep-compression autoencoder with two halvings."""
    sides = ("encoder", "decoder")
    blocks: dict[str, Any] = {
        f"{side}_block_types": ("ResBlock", "ResBlock", "EfficientViTBlock") for side in sides
    }
    blocks |= {f"{side}_block_out_channels": (8, 8, 8) for side in sides}
    blocks |= {f"{side}_qkv_multiscales": ((), (), (5,)) for side in sides}
    blocks |= {f"{side}_layers_per_block": (1, 1, 1) for side in sides}
    return AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.41407, **blocks)


def qwen_image() -> QwenImagePipeline:
    """Qwen-Image: true guidance in two calls with norm rescaling, exponential dynamic shift."""
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
    )
    shift = {"base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192}
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02, **shift)
    decoder = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[-0.7571, -0.7089, -0.9113, 0.1075],
        latents_std=[2.8184, 1.4541, 2.3275, 2.6558],
    )
    return QwenImagePipeline(
        transformer=randomise(transformer, 1),
        scheduler=scheduler,
        vae=randomise(decoder, 2, gain=0.7),
        text_encoder=None,
        tokenizer=None,
    )


IMAGE = {"height": 16, "width": 16, "max_sequence_length": 16}
UNBINNED = {**IMAGE, "use_resolution_binning": False, "clean_caption": False}

FAMILIES = [
    Family(
        "PixArtSigma", pixart_sigma, {**UNBINNED, "guidance_scale": 4.5}, {"guidance_scale": 1.0}, lora=False
    ),
    Family(
        "Sana",
        sana,
        {**UNBINNED, "height": 32, "width": 32, "guidance_scale": 4.5, "negative_prompt": None},
        {"guidance_scale": 1.0},
        embeds=masked_embeds("prompt_attention_mask", width=16, length=16),
    ),
    Family(
        "QwenImage",
        qwen_image,
        {**IMAGE, "true_cfg_scale": 4.0},
        {"true_cfg_scale": 1.0},
        embeds=masked_embeds("prompt_embeds_mask", width=16),
    ),
]
