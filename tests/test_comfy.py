"""The file for ComfyUI: its names are those ComfyUI maps, and what it says is what was trained.

tests/golden/comfy/*.txt: all layers that ComfyUI maps to weights of a model, as its tables name them (facts).
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import load_file

from diffalign.errors import DiffalignError
from diffalign.models.adapters import resolve
from diffalign.models.comfy import export, translated
from diffalign.policy import LoraSpec, Policy
from families.flow import flux
from families.stable_diffusion import stable_diffusion, stable_diffusion_xl

pytestmark = pytest.mark.usefixtures("one_thread")
KNOWN = Path(__file__).parent / "golden" / "comfy"
SD = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
XL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "denoiser", "kind", "settings"),
    [
        ("sd15", "unet", UNet2DConditionModel, SD),
        ("sdxl", "unet", UNet2DConditionModel, XL),
        ("flux", "transformer", FluxTransformer2DModel, {}),
    ],
)
def test_comfy_knows_every_layer_of_the_real_models(name, denoiser, kind, settings):
    with torch.device("meta"):
        model = kind(**settings)
        targets = resolve("attention+conv" if denoiser == "unet" else "attention", model)
        model.add_adapter(LoraConfig(r=1, target_modules=targets))
    weights = model.state_dict().items()
    state = {f"{denoiser}.{key.replace('.default', '')}": value for key, value in weights if ".lora_" in key}
    layers = {key.removesuffix(".alpha").split(".lora_")[0] for key in translated(state, 1.0)}
    known = set((KNOWN / f"{name}.txt").read_text().split())
    assert len(layers) > 100
    assert layers <= known


@pytest.mark.parametrize("make", [stable_diffusion, stable_diffusion_xl, flux])
def test_a_pipeline_that_reads_the_file_draws_the_same(make, tmp_path):
    policy = Policy(make(), steps=2, lora=LoraSpec(rank=2, alpha=3.0))
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    policy.save(tmp_path / "lora")
    file = export(tmp_path / "lora", tmp_path / "loras" / "mine.safetensors")
    ours, theirs, neither = make(), make(), make()
    ours.load_lora_weights(tmp_path / "lora")
    theirs.load_lora_weights(load_file(file))
    drawn = [draw(pipe) for pipe in (ours, theirs, neither)]
    assert torch.allclose(drawn[0], drawn[1], atol=1e-5)
    assert not torch.allclose(drawn[0], drawn[2], atol=1e-3)


def draw(pipe) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        "a cat",
        num_inference_steps=2,
        height=32,
        width=32,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    )
    return made.images


def test_a_folder_without_a_lora_is_refused(tmp_path):
    with pytest.raises(DiffalignError, match=r"give the `lora` folder of a run"):
        export(tmp_path, tmp_path / "x.safetensors")
