"""Step `turbo`: a LoRA that draws in one step, by regression on the teacher's pairs."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn
from torch.nn import functional as F

from . import pairs, pipeline
from .fit import Schedule, fit

BATCH, RANK = 32, 27  # the largest rank whose half-precision weights stay below 5 MB
SCHEDULE = Schedule(steps=1000, rate=1e-3, warmup=30, decay=0.99, weight_decay=0.0, save_every=50)
SCALE = 4.0  # lets a step of Adam change the merged weights by as much as one on the weights themselves
NAME = "turbo"
FIRST = 999


def scheduler() -> DDIMScheduler:
    """Grids that begin at pure noise and end at the picture, whatever the number of steps; v-prediction."""
    return DDIMScheduler.from_config(
        pipeline.scheduler().config,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )


def adapted(folder: Path) -> UNet2DConditionModel:
    """The denoiser of `folder` with a LoRA on every layer, the only thing in it that is trained."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").requires_grad_(False)
    unet.set_attn_processor(AttnProcessor())
    layers = [name for name, part in unet.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    settings = LoraConfig(
        r=RANK, lora_alpha=SCALE * RANK, init_lora_weights="gaussian", target_modules=layers
    )
    unet.add_adapter(settings, NAME)
    return unet


def levels(alphas: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ and √(1 − ᾱ) at timesteps t (B,), shaped (B, 1, 1, 1)."""
    alpha = alphas[t, None, None, None]
    return alpha.sqrt(), (1 - alpha).sqrt()


def clean(unet: UNet2DConditionModel, alphas: Tensor, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """x₀ = √ᾱ·x − √(1 − ᾱ)·v̂, what a v-predicting denoiser takes for the picture in x."""
    signal, noise = levels(alphas, t)
    velocity: Tensor = unet(x, t, text).sample.float()
    return signal * x - noise * velocity


def inputs(drawn: pairs.Pairs, alphas: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What the student starts from, and its timesteps: half of the batch pure noise, half on the way.

    On the way means noised again to a uniform timestep: every second time by fresh noise, as a sampler does
    that adds some, else by the noise of the pair, as one that adds none.
    """
    count = len(drawn.index)
    t = torch.randint(FIRST, (count,), generator=generator)
    t[::2] = FIRST
    fresh = torch.randn(drawn.noise.shape, generator=generator)
    again = torch.where((torch.arange(count) % 4 == 1)[:, None, None, None], fresh, drawn.noise)
    signal, noise = levels(alphas, t)
    on_the_way = signal * drawn.latents + noise * again
    return torch.where((t == FIRST)[:, None, None, None], drawn.noise, on_the_way), t


def loss(
    unet: UNet2DConditionModel, teacher: pairs.Teacher, bank: pairs.Pairs, generator: torch.Generator
) -> Tensor:
    """|x̂₀ − x₀| of a batch of pairs: where a caption has several pictures, the median prefers one."""
    drawn = bank.draw(BATCH, generator)
    x, t = inputs(drawn, teacher.alphas, generator)
    return F.l1_loss(clean(unet, teacher.alphas, x, t, teacher.texts[drawn.index]), drawn.latents)


def train(out: Path, work: Path, schedule: Schedule = SCHEDULE) -> None:
    """Trains on `work/pairs`, writes `out/turbo`: the LoRA and its scheduler's configuration."""
    torch.manual_seed(schedule.seed)
    teacher = pairs.Teacher(out / "base", pairs.captions(out / "pictures.parquet"))
    bank, unet = pairs.load(work), adapted(out / "base")
    fit(unet, lambda generator: loss(unet, teacher, bank, generator), schedule, work / "turbo")
    save(unet, out / "turbo")


def save(unet: UNet2DConditionModel, folder: Path) -> None:
    """Writes `folder` for `load_lora_weights` and `DDIMScheduler.from_pretrained`, fp16."""
    layers = get_peft_model_state_dict(unet, adapter_name=NAME)
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers={name: value.half() for name, value in layers.items()},
        unet_lora_adapter_metadata=unet.peft_config[NAME].to_dict(),
    )
    scheduler().save_pretrained(folder)
