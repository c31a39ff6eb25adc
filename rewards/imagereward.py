"""ImageReward: which picture people would prefer for the prompt."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.reward import once
from diffalign_rewards import _weights
from diffalign_rewards._clip import REMEMBERED, Resized

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the published model's raw scores, by its authors."""

LONGEST = 35
"""Tokens of a prompt that are read; shorter prompts are padded, as the official code does."""

VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6,
}  # fmt: skip
"""ViT-L/16; the checkpoint's med_config.json tells of the text encoder only."""

TEXT = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
    "max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id",
)  # fmt: skip
"""What is taken from med_config.json."""

HEAD = {"0": 1024, "2": 128, "4": 64, "6": 16, "7": 1}
"""The head's layers and how many numbers each gives."""

NAMES = {
    "mlp.layers.": "head.",
    "blip.text_encoder.": "text.",
    "blip.visual_encoder.": "vision.",
    "vision.cls_token": "vision.embeddings.class_embedding",
    "vision.pos_embed": "vision.embeddings.position_embedding",
    "vision.patch_embed.proj.": "vision.embeddings.patch_embedding.",
    "vision.norm.": "vision.post_layernorm.",
    "vision.blocks.": "vision.encoder.layers.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}
"""What the checkpoint calls the parts of transformers' BLIP; replaced in this order."""


class ImageReward:
    """How well the picture fits its prompt and pleases, by BLIP fitted to experts' comparisons.

    Xu et al. 2023, arXiv:2304.05977, github.com/THUDM/ImageReward (Apache-2.0). Scaled to mean 0 and deviation
    1 on the authors' pictures; not bounded. Prompts are cut after 35 tokens. Differentiable, as ReFL needs it.
    Weights: ImageReward.pt and med_config.json of THUDM/ImageReward, or of the folder `path`.
    vocabulary: the file vocab.txt of bert-base-uncased, where that is not in the Hugging Face cache.
    """

    needs = ("weights: THUDM/ImageReward", "vocabulary: bert-base-uncased")
    differentiable = True

    def __init__(self, path: str | None = None, vocabulary: str | None = None) -> None:
        files = ("ImageReward.pt", "med_config.json")
        folder = _weights.folder("imagereward", "THUDM/ImageReward", files, path)
        words = _weights.file("imagereward", "bert-base-uncased", "vocab.txt", vocabulary, "vocabulary")
        self.model, self.tokenize, self.look = (
            load(folder.resolve()),
            load_tokenizer(words.resolve()),
            Resized(),
        )
        self.read = lru_cache(REMEMBERED)(self._read)

    def prepare(self, prompts: Sequence[str]) -> None:
        """Read the prompts before the pictures come."""
        for prompt in prompts:
            self.read(prompt)

    def _read(self, prompt: str) -> Tensor:
        """Token ids, and 1 for each that is not padding: (2, 35)."""
        read = self.tokenize(prompt, padding="max_length", truncation=True, max_length=LONGEST)
        return torch.tensor([read["input_ids"], read["attention_mask"]])

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor:
        """Scores (B,) of pictures (B, 3, H, W) in [0, 1] for their prompts."""
        model = self.model.to(images.device)
        seen = once((model, self.look), images, lambda: model.see(self.look(images)))
        ids, mask = torch.stack([self.read(prompt) for prompt in prompts], 1).to(images.device)
        raw: Tensor = model(seen, ids, mask)
        return (raw - MEAN) / STD


class Blip(nn.Module):
    """BLIP's picture tower, its text encoder, which looks at the picture, and a head without activations."""

    def __init__(self, text: Mapping[str, Any]) -> None:
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        sees = {"encoder_hidden_size": VISION["hidden_size"], "is_decoder": True}  # it has cross-attention
        sides = pairwise((text["hidden_size"], *HEAD.values()))
        self.vision = BlipVisionModel(BlipVisionConfig(**VISION))
        self.text = BlipTextModel(BlipTextConfig(**text, **sees), add_pooling_layer=False)
        self.head = nn.Sequential(OrderedDict(zip(HEAD, (nn.Linear(*side) for side in sides), strict=True)))

    def see(self, pixels: Tensor) -> Tensor:
        """Features (B, 197, width) of preprocessed pictures' patches."""
        features: Tensor = self.vision(pixels.to(self.vision.post_layernorm.weight.dtype)).last_hidden_state
        return features

    def forward(self, seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Raw scores (B,): the head on what the first token, [CLS], has gathered."""
        read = self.text(ids, mask, encoder_hidden_states=seen).last_hidden_state
        scores: Tensor = self.head(read[:, 0]).squeeze(1)
        return scores


@lru_cache
def load(folder: Path) -> Blip:
    """The official checkpoint, frozen; what it holds beyond the score's needs is left out."""
    with _weights.reading(folder, "ImageReward's weights"):
        described = json.loads((folder / "med_config.json").read_text())
        weights = torch.load(folder / "ImageReward.pt", map_location="cpu", weights_only=True)
        model = Blip({key: described[key] for key in TEXT})
        named = {renamed(name): value for name, value in weights.items()}
        model.load_state_dict({name: named[name] for name in named.keys() & model.state_dict().keys()})
    return model.float().eval().requires_grad_(False)


def renamed(name: str) -> str:
    """What transformers calls a weight of the checkpoint."""
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


@lru_cache
def load_tokenizer(vocabulary: Path) -> Any:
    """BERT's tokenizer, uncased."""
    from transformers import BertTokenizer

    with _weights.reading(vocabulary, "BERT's vocabulary"), vocabulary.open(encoding="utf-8") as words:
        return BertTokenizer({word.rstrip("\n"): place for place, word in enumerate(words)})
