"""Step `unet`: the denoiser and its text encoder, trained together on latents."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from . import data, pipeline, words
from .fit import Schedule, fit
from .vae import latents

BATCH = 32
SCHEDULE = Schedule(steps=15000, rate=8e-4, save_every=100)
STYLELESS, EMPTY, GAMMA = 0.4, 0.1, 5.0


class Model(nn.Module):
    """Text encoder and denoiser as one module: (latents, timesteps, token ids) → ε."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=words.LENGTH,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=2,
            )
        )
        self.unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(64, 128, 192),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=128,
            attention_head_dim=4,
            norm_num_groups=16,
        )
        self.unet.set_attn_processor(
            AttnProcessor()
        )  # on CPU a quarter less time per step than the fused kernel

    def start_from(self, folder: Path) -> None:
        """Takes over the weights of the pipeline in `folder`, which must have this layout and vocabulary."""
        self.text_encoder.load_state_dict(CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict())
        self.unet.load_state_dict(UNet2DConditionModel.from_pretrained(folder / "unet").state_dict())

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        """Predicted noise, shaped like `noisy`."""
        noise: Tensor = self.unet(noisy, timesteps, self.text_encoder(ids).last_hidden_state).sample
        return noise


class Captions:
    """Token ids of every picture: with style word, without it, and of the empty prompt."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, str]]) -> None:
        def encode(texts: list[str]) -> Tensor:
            ids: Tensor = tokenizer(
                texts, padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
            return ids

        self.styled = encode([f"{row['style']} {row['name']}" for row in rows])
        self.plain = encode([row["name"] for row in rows])
        self.empty = encode([""])

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Ids of these pictures: the style word dropped in 40 %, all words in 10 %."""
        dice = torch.rand(len(index), 1, generator=generator)
        ids = torch.where(dice < STYLELESS + EMPTY, self.plain[index], self.styled[index])
        return torch.where(dice < EMPTY, self.empty, ids)


def loss(
    model: Model, alphas: Tensor, codes: Tensor, captions: Captions, generator: torch.Generator
) -> Tensor:
    """‖ε̂ − ε‖² weighted by min(SNR, 5)/SNR (Hang et al. 2023, eq. 9), so that shapes are learned before grain."""
    index = torch.randint(len(codes), (BATCH,), generator=generator)
    timesteps = torch.randint(len(alphas), (BATCH,), generator=generator)
    noise = torch.randn(codes[index].shape, generator=generator)
    alpha = alphas[timesteps, None, None, None]
    noisy = alpha.sqrt() * codes[index] + (1 - alpha).sqrt() * noise
    error: Tensor = model(noisy, timesteps, captions.draw(index, generator)).float() - noise
    ratio = alpha / (1 - alpha)
    return (ratio.clamp(max=GAMMA) / ratio * error.square()).mean()


def train(out: Path, work: Path, schedule: Schedule = SCHEDULE, start: Path | None = None) -> None:
    """Trains on `out/pictures.parquet` seen through `out/base/vae`, completes the pipeline `out/base`.

    start: a pipeline whose weights to go on from, instead of random ones.
    """
    torch.manual_seed(schedule.seed)
    images, rows = data.arrays(out / "pictures.parquet")
    vae = AutoencoderKL.from_pretrained(out / "base/vae")
    codes = latents(vae, torch.from_numpy(images))
    tokenizer = words.tokenizer(words.vocabulary(f"{row['style']} {row['name']}" for row in rows))
    captions, alphas = Captions(tokenizer, rows), pipeline.scheduler().alphas_cumprod
    model = Model(len(tokenizer))
    if start:
        model.start_from(start)
    fit(model, lambda generator: loss(model, alphas, codes, captions, generator), schedule, work / "unet")
    pipeline.save(out / "base", vae, model.unet, model.text_encoder, tokenizer)
