"""PickScore: which picture the people of Pick-a-Pic would have chosen for the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffalign_rewards import _hugging_face, _weights
from diffalign_rewards._clip import TowerReward


class PickScore(TowerReward):
    """Logit of picture and prompt by CLIP ViT-H/14 fitted to people's choices between two pictures.

    Kirstain et al. 2023, arXiv:2305.01569, github.com/yuvalkirstain/PickScore (MIT). The cosine times the
    learnt scale, about 100; typically 18 to 24. A difference d in score is a preference of sigmoid(d).
    Weights: the folder yuvalkirstain/PickScore_v1, or any Hugging Face CLIPModel at `path`. Differentiable.
    """

    needs = "weights: yuvalkirstain/PickScore_v1"

    def __init__(self, path: str | None = None) -> None:
        folder = _weights.folder("pickscore", "yuvalkirstain/PickScore_v1", _hugging_face.NEEDS, path)
        self.tower, self.look = _hugging_face.from_folder(folder.resolve())

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Tensor:
        """Scores (B,) of pictures (B, 3, H, W) in [0, 1] for their prompts."""
        scale: Tensor = self.tower.model.logit_scale.exp()
        return scale * self.cosine(images, prompts)
