"""Pipelines that do something special in their loop: a policy has to be right about it, or to refuse it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanImage,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    ControlNetModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    StableDiffusionControlNetPipeline,
    WanPipeline,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

from . import flow, more, stable_diffusion, video
from .base import Family, masked_embeds, randomise

CONTROL = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def wan22() -> WanPipeline:
    """Wan2.2-T2V-A14B: below 0.875 of the noise a second transformer takes over."""
    return video.wan(transformer_2=video.wan_transformer(9), boundary_ratio=0.875)


def controlnet() -> StableDiffusionControlNetPipeline:
    """Stable Diffusion 1.5 with a ControlNet, whose residuals change with every step."""
    parts = stable_diffusion.sd15_parts()
    net = ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(4, 8))
    return StableDiffusionControlNetPipeline(**parts, controlnet=randomise(net, 5, gain=2.0))


def ltx2() -> LTX2Pipeline:
    """LTX-2: video and audio denoised together, the audio with a deep copy of the scheduler."""
    sizes = {"num_attention_heads": 2, "cross_attention_dim": 16}
    transformer = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        attention_head_dim=8,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_attention_head_dim=8,
        **sizes,
        **{f"audio_{name}": size for name, size in sizes.items()},
        num_layers=2,
        caption_channels=16,
        rope_type="split",
    )
    connectors = LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=1,
        **{f"{kind}_connector_num_attention_heads": 2 for kind in ("video", "audio")},
        **{f"{kind}_connector_attention_head_dim": 8 for kind in ("video", "audio")},
        **{f"{kind}_connector_num_layers": 1 for kind in ("video", "audio")},
        **{f"{kind}_connector_num_learnable_registers": 16 for kind in ("video", "audio")},
        rope_type="split",
    )
    shift = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "max_image_seq_len": 4096}
    return LTX2Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1, **shift),
        vae=randomise(ltx2_vae(), 2, gain=0.7),
        audio_vae=randomise(ltx2_audio_vae(), 3),
        text_encoder=None,
        tokenizer=None,
        connectors=randomise(connectors, 4),
        transformer=randomise(transformer, 1),
        vocoder=randomise(ltx2_vocoder(), 5),
    )


def ltx2_vae() -> AutoencoderKLLTX2Video:
    return AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("LTX2VideoDownBlock3D",) * 2,
        decoder_block_out_channels=(4, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("spatiotemporal",) * 2,
        upsample_type=("spatiotemporal",) * 2,
        upsample_residual=(False,) * 2,
        upsample_factor=(1, 1),
        patch_size=2,
    )


def ltx2_audio_vae() -> AutoencoderKLLTX2Audio:
    return AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
    )


def ltx2_vocoder() -> LTX2Vocoder:
    return LTX2Vocoder(
        in_channels=16,
        hidden_channels=16,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3]],
    )


def hunyuan_image(momentum_from: int = 5) -> HunyuanImagePipeline:
    """HunyuanImage-2.1: after some steps a guider projects the guidance with momentum from step to step."""
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=16,
        text_embed_2_dim=16,
        rope_axes_dim=(4, 4),
    )
    decoder = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=16,
        scaling_factor=0.75289,
    )
    return HunyuanImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=randomise(decoder, 2, gain=0.7),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=randomise(transformer, 1),
        guider=AdaptiveProjectedMixGuidance(
            guidance_scale=3.5, adaptive_projected_guidance_start_step=momentum_from
        ),
    )


def hunyuan_image_embeds(n: int, lengths: list[int], first: int = 0) -> dict[str, Any]:
    """Token embeddings of the language model and, here all zero, of the glyph encoder; each with its mask."""
    embeds = masked_embeds("prompt_embeds_mask", width=16, length=16)(n, lengths, first)
    glyphs = {name: torch.zeros_like(value)[:, :4] for name, value in embeds.items()}
    return {**embeds, **{f"{name}_2": value for name, value in glyphs.items()}}


IMAGE = {"height": 16, "width": 16}
OFF = {"guidance_scale": 1.0}
SKIP = {"skip_guidance_layers": [1], "skip_layer_guidance_scale": 2.8}
LTX2_ALL_OFF = {"guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0, "guidance_rescale": 0.0}
LTX2_CLIP = {**video.LTX_CLIP, "guidance_scale": 4.0, "spatio_temporal_guidance_blocks": [1]}

TRAPS = [
    Family(
        "StableDiffusion3SkipLayers",
        flow.stable_diffusion_3,
        {**flow.IMAGE, "guidance_scale": 5.0, **SKIP},
        OFF,
        steps=10,
        disarm={"skip_guidance_layers": None},
    ),
    Family(
        "CogVideoXDynamicGuidance",
        video.cogvideox,
        {**video.CLIP, "guidance_scale": 6.0, "use_dynamic_cfg": True},
        OFF,
        video=True,
        disarm={"use_dynamic_cfg": False},
    ),
    Family(
        "Wan22",
        wan22,
        {**video.CLIP, "guidance_scale": 4.0, "guidance_scale_2": 3.0},
        {**OFF, "guidance_scale_2": 1.0},
        video=True,
        disarm={"guidance_scale_2": 4.0},
    ),
    Family(
        "StableDiffusionControlNet",
        controlnet,
        {**IMAGE, "guidance_scale": 7.5, "image": CONTROL},
        OFF,
        disarm={"controlnet_conditioning_scale": 0.0},
    ),
    Family(
        "LTX2",
        ltx2,
        LTX2_CLIP,
        {**LTX2_ALL_OFF, **{f"audio_{name}": value for name, value in LTX2_ALL_OFF.items()}},
        embeds=masked_embeds("prompt_attention_mask", width=16, length=16),
        video=True,
    ),
    Family(
        "HunyuanImage",
        hunyuan_image,
        {**IMAGE, "distilled_guidance_scale": None},
        {},
        embeds=hunyuan_image_embeds,
        steps=8,
        lora=False,
    ),
    Family(
        "Lumina2TruncatedGuidance",
        more.lumina2,
        {**more.IMAGE, "height": 64, "width": 64, "guidance_scale": 4.0, "cfg_trunc_ratio": 0.25},
        OFF,
        embeds=more.MASKED,
        disarm={"cfg_trunc_ratio": 1.0},
    ),
]
