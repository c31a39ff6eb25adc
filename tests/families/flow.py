"""Flow transformers for images: Stable Diffusion 3, FLUX.1."""

from __future__ import annotations

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from .base import Family, clip_encoder, clip_tokenizer, randomise, t5_encoder, t5_tokenizer, vae

FLUX_SHIFT = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    """stable-diffusion-3-medium: two CLIPs and T5, constant shift."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer=randomise(transformer, 1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(
            2, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip_encoder(3, projection=16),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_encoder(4, projection=16, act="gelu"),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(5),
        tokenizer_3=t5_tokenizer(),
    )


def flux() -> FluxPipeline:
    """FLUX.1-dev: distilled guidance as an input of the transformer, dynamic shift, packed latents."""
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    return FluxPipeline(
        transformer=randomise(transformer, 1),
        scheduler=FlowMatchEulerDiscreteScheduler(**FLUX_SHIFT),
        vae=vae(
            2, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip_encoder(3),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(4),
        tokenizer_2=t5_tokenizer(),
    )


IMAGE = {"height": 16, "width": 16, "max_sequence_length": 16}

FAMILIES = [
    Family("StableDiffusion3", stable_diffusion_3, {**IMAGE, "guidance_scale": 7.0}, {"guidance_scale": 1.0}),
    Family("Flux", flux, {**IMAGE, "guidance_scale": 3.5}, {"guidance_scale": 1.0}),
]
