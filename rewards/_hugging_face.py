"""Hugging Face CLIPModel folders as towers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign.reward import DiffalignError
from diffalign_rewards import _weights
from diffalign_rewards._clip import Resized, Tower

NEEDS = ("config.json", "*model.*", "tokenizer_config.json")
"""Files of such a folder."""


@lru_cache
def from_folder(folder: Path) -> tuple[Tower, Resized]:
    """Model and tokenizer of a folder; pictures as transformers' CLIP processor prepares them."""
    from transformers import CLIPModel, CLIPTokenizer

    with _weights.reading(folder, "a Hugging Face CLIPModel"):
        model, report = CLIPModel.from_pretrained(folder, output_loading_info=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        if report["missing_keys"]:
            raise DiffalignError(f"weights are missing: {sorted(report['missing_keys'])}")
        if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one without a word
            raise DiffalignError("the vocabulary is missing: tokenizer.json, or vocab.json with merges.txt")
    length = model.config.text_config.max_position_embeddings
    side = model.config.vision_config.image_size

    def tokenize(prompts: list[str]) -> Tensor:
        read = tokenizer(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        ids: Tensor = read.input_ids
        return ids

    return Tower(_OpenClipNames(model), tokenize), Resized((side, side), offset=int)


class _OpenClipNames(torch.nn.Module):
    """A CLIPModel with the method names of open_clip."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.logit_scale = model, model.logit_scale

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Features (B, E) of preprocessed pictures."""
        features: Tensor = self.model.get_image_features(pixel_values=pixels).pooler_output
        return features

    def encode_text(self, ids: Tensor) -> Tensor:
        """Features (B, E) of prompts; the padding comes after the token that is read, so it needs no mask."""
        features: Tensor = self.model.get_text_features(input_ids=ids).pooler_output
        return features
