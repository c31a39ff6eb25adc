"""LAION's aesthetic score: how much people would like the picture, whatever it shows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffalign_rewards import _open_clip, _weights
from diffalign_rewards._clip import TowerReward


class Aesthetic(TowerReward):
    """An MLP on CLIP ViT-L/14's features, fitted to people's ratings (LAION-Aesthetics V2, Schuhmann 2022).

    Ratings were from 1 to 10; scores are not bounded. Prompts do not matter. Differentiable.
    Official: github.com/christophschuhmann/improved-aesthetic-predictor (Apache-2.0).

    head: its sac+logos+ava1-l14-linearMSE.pth; by default the cached trl-lib/ddpo-aesthetic-predictor.
    tower: OpenAI's ViT-L-14.pt (code MIT); by default the cached timm/vit_large_patch14_clip_224.openai.
    """

    needs = ("weights: trl-lib/ddpo-aesthetic-predictor", "weights: timm/vit_large_patch14_clip_224.openai")

    def __init__(self, head: str | None = None, tower: str | None = None) -> None:
        self.tower, self.look = _open_clip.load("aesthetic", "ViT-L-14-quickgelu", "openai", tower, "tower")
        repo, name = "trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth"
        self.head = load_head(_weights.file("aesthetic", repo, name, head, "head").resolve())

    def prepare(self, prompts: Sequence[str]) -> None:
        """Nothing: the prompts are never read."""

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor:
        """Scores (B,) of pictures (B, 3, H, W) in [0, 1]; the prompts are ignored."""
        features = self.embed(images)
        scores: Tensor = self.head.to(features.device)(features)
        return scores


class Head(nn.Module):
    """The official linear-MSE head; its layers have no activations between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(768, 1024), nn.Dropout(),
            nn.Linear(1024, 128), nn.Dropout(),
            nn.Linear(128, 64), nn.Dropout(),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B,) of unit features (B, 768)."""
        scores: Tensor = self.layers(features).squeeze(1)
        return scores


@lru_cache
def load_head(path: Path) -> Head:
    """A head from its official file, frozen."""
    with _weights.reading(path, "the linear-MSE head of LAION's aesthetic predictor"):
        head = Head()
        head.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return head.float().eval().requires_grad_(False)
