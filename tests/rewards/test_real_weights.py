"""For those who have the published weights in their cache: pytest --real-weights tests/rewards/test_real_weights.py.

The official READMEs publish no score of a picture, so this asks for the order that anybody would give.
"""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from diffalign_demo.emoji import pictures
from diffalign_rewards.aesthetic import Aesthetic
from diffalign_rewards.clip import Clip
from diffalign_rewards.hpsv2 import HPSv2
from diffalign_rewards.pickscore import PickScore

pytestmark = pytest.mark.real_weights


@pytest.fixture(scope="module")
def emoji():
    """Packaged pictures and what they show."""
    rows = [row for row in pictures() if row["style"] == "3d"][::100]
    decoded = [Image.open(io.BytesIO(row["webp"])).convert("RGB").resize((224, 224)) for row in rows]
    return torch.stack([pil_to_tensor(image) for image in decoded]) / 255, [row["name"] for row in rows]


@pytest.mark.parametrize(
    "make", [Clip, PickScore, HPSv2, lambda: HPSv2("2.1")], ids=["clip", "pickscore", "hpsv2", "hpsv2.1"]
)
def test_pictures_match_their_own_names_best(make, emoji):
    images, names = emoji
    reward = make()
    right, wrong = reward(images, names), reward(images, names[1:] + names[:1])
    assert float((right > wrong).float().mean()) > 0.8


def test_aesthetic_scores_are_on_the_scale_of_the_ratings(emoji):
    scores = Aesthetic()(*emoji)
    assert 1 < float(scores.min()) <= float(scores.max()) < 10
