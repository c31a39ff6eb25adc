"""LAION's aesthetic score: what is refused, and what it shares with CLIP."""

from __future__ import annotations

import pytest
import torch
from golden import heads, store, tiny
from torchvision.transforms.functional import to_tensor

from diffalign.reward import DiffalignError, sharing
from diffalign_rewards.aesthetic import load_head
from diffalign_rewards.clip import Clip

pytestmark = pytest.mark.usefixtures("one_thread")


def test_clip_over_the_same_weights_shares_the_tower(tmp_path, monkeypatch):
    aesthetic = tiny.aesthetic(tmp_path)
    with tiny.architecture("ViT-L-14-quickgelu", {**tiny.SMALL_L, "embed_dim": 768}):
        clip = Clip(path=str(tmp_path / "ViT-L-14.pt"))
    assert clip.tower is aesthetic.tower
    model, calls = clip.tower.model, []
    encode = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda pixels: calls.append(1) or encode(pixels))
    images = to_tensor(store.load("aesthetic").pictures[2])[None]
    with sharing():
        aesthetic(images, ["a cat"])
        clip(images, ["a cat"])
    assert calls == [1]


def test_heads_of_other_layouts_are_refused(tmp_path):
    moved = {name.replace(".2.", ".3."): value for name, value in heads.aesthetic().items()}
    torch.save(moved, tmp_path / "relu.pth")
    with pytest.raises(DiffalignError, match="does not hold the linear-MSE head"):
        load_head(tmp_path / "relu.pth")


def test_nothing_is_executed_on_loading(tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "pickled.pth")
    with pytest.raises(DiffalignError, match="does not hold the linear-MSE head"):
        load_head(tmp_path / "pickled.pth")
