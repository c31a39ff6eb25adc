"""What a tiny pipeline of a family is, and what families share: weights, words, text encoders, VAE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch.nn.functional import pad
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

PROMPTS = ["cat", "a red fox in the snow", "two dogs", "a small blue house on a hill at night"]
"""Prompts of different lengths, of 1, 6, 2 and 9 tokens."""


@dataclass(frozen=True)
class Family:
    """A tiny, seeded pipeline of one model family with the arguments of a published, normal call.

    `unguided` switches guidance off. `disarm`, for a trap, switches off what makes it one.
    """

    name: str
    make: Callable[[], DiffusionPipeline]
    call: dict[str, Any]
    unguided: dict[str, Any]
    embeds: Callable[..., dict[str, Any]] | None = None
    steps: int = 4
    lora: bool = True
    video: bool = False
    disarm: dict[str, Any] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=lambda: list(PROMPTS))

    @property
    def call_unguided(self) -> dict[str, Any]:
        """The arguments of the call with guidance switched off."""
        return {**self.call, **self.unguided}

    def inputs(self, n: int = 1, first: int = 0) -> dict[str, Any]:
        """The arguments that stand for `n` prompts from number `first` on: words, or embeddings."""
        if self.embeds is None:
            return {"prompt": self.prompts[first : first + n]}
        return self.embeds(n, LENGTHS[first : first + n], first)


LENGTHS = [3, 8, 4, 11]
"""Number of tokens of the prompts that embeddings stand for."""


def randomise(module: torch.nn.Module, seed: int, gain: float = 1.0) -> Any:
    """Draw every parameter anew, so that no zero-initialised layer hides prompt, time or input."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        match parameter.ndim, name.rsplit(".", 1)[-1]:
            case (1, "weight" | "gamma"):
                value = 1 + 0.1 * noise
            case (0 | 1, _):
                value = 0.1 * noise
            case _:
                value = gain * noise / prod(parameter.shape[1:]) ** 0.5
        parameter.data.copy_(value)
    return module.eval().requires_grad_(False)


def embedding(prompt: int, length: int, width: int) -> torch.Tensor:
    """The encoded prompt number `prompt`, (length, width); number -1 stands for the empty negative prompt."""
    return torch.randn(length, width, generator=torch.Generator().manual_seed(1000 + prompt))


def masked_embeds(mask: str, width: int, length: int | None = None) -> Callable[..., dict[str, Any]]:
    """Encoded prompts and a negative one, zero-padded to `length` (None: the longest), and their masks."""

    def embeds(n: int, lengths: list[int], first: int = 0) -> dict[str, Any]:
        rows = [embedding(first + i, size, width) for i, size in zip(range(n), lengths, strict=True)]
        empty = [embedding(-1, 2, width)] * n
        return {
            **dict(zip(("prompt_embeds", mask), padded(rows, length), strict=True)),
            **dict(zip(("negative_prompt_embeds", "negative_" + mask), padded(empty, length), strict=True)),
        }

    return embeds


def padded(rows: list[torch.Tensor], length: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different length as one tensor, padded with zeros, and the mask of what is no padding."""
    longest = length or max(map(len, rows))
    mask = torch.stack([torch.arange(longest) < len(row) for row in rows]).long()
    return torch.stack([pad(row, (0, 0, 0, longest - len(row))) for row in rows]), mask


def clip_tokenizer(length: int = 16) -> CLIPTokenizer:
    """A CLIP tokenizer that knows all letters and every word of PROMPTS."""
    tokens = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz"]
    tokens += [letter + "</w>" for letter in tokens[2:]]
    merges = {}
    for word in " ".join(PROMPTS).split():
        left, *rest = [*word[:-1], word[-1] + "</w>"]
        for right in rest:
            merges[left, right] = left = left + right
    vocab = {token: number for number, token in enumerate(dict.fromkeys([*tokens, *merges.values()]))}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=length)


def clip_encoder(seed: int, projection: int | None = None, act: str = "quick_gelu", width: int = 16) -> Any:
    """A CLIP text encoder for `clip_tokenizer`; `projection` is the size of a projected pooled output."""
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection or width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act=act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return randomise((CLIPTextModelWithProjection if projection else CLIPTextModel)(config), seed)


def t5_tokenizer(length: int = 16) -> T5TokenizerFast:
    """A T5 tokenizer whose unigram vocabulary is the words of PROMPTS and single letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [("▁" + word, -3.0) for word in dict.fromkeys(" ".join(PROMPTS).split())]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=length)


def t5_encoder(seed: int, width: int = 32, kind: Any = T5EncoderModel, config: Any = T5Config) -> Any:
    """A T5 (or UMT5) encoder for `t5_tokenizer`."""
    sizes = {
        "d_model": width,
        "d_kv": 8,
        "num_heads": 2,
        "d_ff": 2 * width,
        "num_layers": 2,
        "feed_forward_proj": "gated-gelu",
    }
    return randomise(kind(config(vocab_size=len(t5_tokenizer()), **sizes)), seed)


def vae(seed: int, **config: Any) -> AutoencoderKL:
    """An image VAE that halves each side; `config` is what the family published (scaling, shift, ...)."""
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (4, 8),
        "norm_num_groups": 2,
        "latent_channels": 4,
        "sample_size": 16,
    }
    return randomise(AutoencoderKL(**{**blocks, **config}), seed, gain=0.7)
