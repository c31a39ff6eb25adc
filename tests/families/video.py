"""Video families: Wan 2.1, CogVideoX, LTX-Video."""

from __future__ import annotations

from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

from .base import Family, randomise, t5_encoder, t5_tokenizer


def wan_transformer(seed: int) -> WanTransformer3DModel:
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=32,
    )
    return randomise(transformer, seed)


def wan_vae() -> AutoencoderKLWan:
    """A causal video VAE that halves time and sides."""
    decoder = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[-0.7571, -0.7089, -0.9113, 0.1075],
        latents_std=[2.8184, 1.4541, 2.3275, 2.6558],
        scale_factor_temporal=2,
        scale_factor_spatial=2,
    )
    return randomise(decoder, 2, gain=0.7)


def wan(**parts: object) -> WanPipeline:
    """Wan2.1-T2V-1.3B: two calls a step, UniPC on flow sigmas of shift 3."""
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    return WanPipeline(
        transformer=wan_transformer(1),
        scheduler=UniPCMultistepScheduler(beta_start=0.0001, beta_end=0.02, **flow),
        vae=wan_vae(),
        text_encoder=t5_encoder(3, kind=UMT5EncoderModel, config=UMT5Config),
        tokenizer=t5_tokenizer(),
        **parts,
    )


def cogvideox() -> CogVideoXPipeline:
    """CogVideoX-2b: v-prediction on zero-terminal-SNR betas with SNR shift 3, trailing timesteps."""
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=32,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        temporal_compression_ratio=2,
        max_text_seq_length=16,
    )
    decoder = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=2,
    )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    return CogVideoXPipeline(
        transformer=randomise(transformer, 1),
        scheduler=scheduler,
        vae=randomise(decoder, 2, gain=0.7),
        text_encoder=t5_encoder(3),
        tokenizer=t5_tokenizer(),
    )


def ltx() -> LTXPipeline:
    """LTX-Video 0.9: packed latents, dynamic shift stretched to a terminal sigma of 0.1."""
    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=32,
    )
    decoder = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3,
        patch_size=2,
    )
    shift = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096}
    return LTXPipeline(
        transformer=randomise(transformer, 1),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1, **shift),
        vae=randomise(decoder, 2, gain=0.7),
        text_encoder=t5_encoder(3),
        tokenizer=t5_tokenizer(),
    )


CLIP = {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 16}
LTX_CLIP = {**CLIP, "height": 32, "width": 32, "num_frames": 9}
OFF = {"guidance_scale": 1.0}

FAMILIES = [
    Family("Wan", wan, {**CLIP, "guidance_scale": 5.0}, OFF, video=True),
    Family("CogVideoX", cogvideox, {**CLIP, "guidance_scale": 6.0}, OFF, video=True),
    Family("LTX", ltx, {**LTX_CLIP, "guidance_scale": 3.0}, OFF, video=True),
]
