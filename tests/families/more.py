"""Further families, each odd in its own way: HunyuanVideo, Lumina 2, FLUX.2, Z-Image, AuraFlow, Chroma."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo,
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

from .base import Family, embedding, masked_embeds, padded, randomise, t5_encoder, t5_tokenizer, vae
from .flow import FLUX_SHIFT


def flux_vae(**config: Any) -> AutoencoderKL:
    """The autoencoder of FLUX.1, which Lumina 2, Z-Image and Chroma use too."""
    published = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    return vae(2, **published, use_quant_conv=False, use_post_quant_conv=False, **config)


def hunyuan_video() -> HunyuanVideoPipeline:
    """HunyuanVideo: distilled guidance, a token refiner under a mask, shift 7."""
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 2, 4),
    )
    decoder = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 3,
        up_block_types=("HunyuanVideoUpBlock3D",) * 3,
        block_out_channels=(4, 4, 4),
        layers_per_block=1,
        norm_num_groups=2,
        spatial_compression_ratio=4,
    )
    return HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=randomise(transformer, 1),
        vae=randomise(decoder, 2, gain=0.7),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
    )


def hunyuan_embeds(n: int, lengths: list[int], first: int = 0) -> dict[str, Any]:
    """Token embeddings with their mask and pooled embeddings."""
    prompts = masked_embeds("prompt_attention_mask", width=16, length=16)(n, lengths, first)
    pooled = padded([embedding(500 + first + i, 1, 8) for i in range(n)], 1)[0][:, 0]
    return {**prompts, "pooled_prompt_embeds": pooled}


def lumina2() -> Lumina2Pipeline:
    """Lumina-Image-2.0: time 1 - t/1000, negated output, norm-preserving guidance, shift 6."""
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(32, 16, 16),
        cap_feat_dim=16,
    )
    return Lumina2Pipeline(
        transformer=randomise(transformer, 1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=flux_vae(  # Lumina2Pipeline takes it for granted that a VAE makes a side eight times as long
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 4, 4, 8),
        ),
        text_encoder=None,
        tokenizer=None,
    )


def flux2() -> Flux2Pipeline:
    """FLUX.2-dev: four-axis positions, patched latents normalised by running statistics, dynamic shift."""
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
    )
    decoder = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=4,
        sample_size=16,
    )
    randomise(decoder, 2, gain=0.7)
    decoder.bn.running_mean.fill_(0.1)
    decoder.bn.running_var.fill_(1.5)
    return Flux2Pipeline(
        transformer=randomise(transformer, 1),
        scheduler=FlowMatchEulerDiscreteScheduler(**FLUX_SHIFT),
        vae=decoder,
        text_encoder=None,
        tokenizer=None,
    )


def flux2_embeds(n: int, lengths: list[int], first: int = 0) -> dict[str, Any]:
    """Token embeddings padded to one length, without a mask."""
    return {"prompt_embeds": masked_embeds("mask", width=16, length=16)(n, lengths, first)["prompt_embeds"]}


def z_image() -> ZImagePipeline:
    """Z-Image: latents and prompts enter as lists, time 1 - t/1000, negated output, shift 6."""
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[2, 2, 4],
        axes_lens=[64, 16, 16],
    )
    return ZImagePipeline(
        transformer=randomise(transformer, 1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=flux_vae(),
        text_encoder=None,
        tokenizer=None,
    )


def z_image_embeds(n: int, lengths: list[int], first: int = 0) -> dict[str, Any]:
    """One unpadded tensor a prompt."""
    prompts = [embedding(first + i, lengths[i], 16) for i in range(n)]
    return {"prompt_embeds": prompts, "negative_prompt_embeds": [embedding(-1, 2, 16)] * n}


def aura_flow() -> AuraFlowPipeline:
    """AuraFlow v0.2: timestep t/1000, UMT5 embeddings with padding zeroed, shift 1.73."""
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    return AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(3, kind=UMT5EncoderModel, config=UMT5Config),
        vae=vae(2, scaling_factor=0.13025),
        transformer=randomise(transformer, 1, gain=2.0),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )


def chroma() -> ChromaPipeline:
    """Chroma1: FLUX with true guidance in two calls and attention masks over text and image."""
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(2, 2, 4),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return ChromaPipeline(
        transformer=randomise(transformer, 1),
        scheduler=FlowMatchEulerDiscreteScheduler(**FLUX_SHIFT),
        vae=flux_vae(),
        text_encoder=t5_encoder(3),
        tokenizer=t5_tokenizer(),
    )


IMAGE = {"height": 16, "width": 16, "max_sequence_length": 16}
CLIP = {**IMAGE, "height": 32, "width": 32, "num_frames": 9}
OFF = {"guidance_scale": 1.0}
MASKED = masked_embeds("prompt_attention_mask", width=16, length=16)

FAMILIES = [
    Family(
        "HunyuanVideo", hunyuan_video, {**CLIP, "guidance_scale": 6.0}, OFF, embeds=hunyuan_embeds, video=True
    ),
    Family(
        "Lumina2", lumina2, {**IMAGE, "height": 64, "width": 64, "guidance_scale": 4.0}, OFF, embeds=MASKED
    ),
    Family("Flux2", flux2, {**IMAGE, "guidance_scale": 4.0}, OFF, embeds=flux2_embeds),
    Family(
        "ZImage",
        z_image,
        {**IMAGE, "guidance_scale": 4.0},
        {"guidance_scale": 0.0},
        embeds=z_image_embeds,
    ),
    Family("AuraFlow", aura_flow, {**IMAGE, "guidance_scale": 3.5}, OFF),
    Family("Chroma", chroma, {**IMAGE, "guidance_scale": 5.0}, OFF),
]
