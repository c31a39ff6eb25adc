"""HPSv2: both ways to shrink pictures, sizes at which the official code fails, and its two versions."""

from __future__ import annotations

import pytest
import torch
from golden import store, tiny
from huggingface_hub import constants
from torchvision.transforms.functional import to_tensor

from diffalign.reward import DiffalignError
from diffalign_rewards.hpsv2 import HPSv2, Padded

GOLDEN = store.load("hpsv2")

pytestmark = pytest.mark.usefixtures("one_thread")


def test_scores_without_antialiasing_are_the_official_ones_of_older_torchvision(tmp_path):
    reward = tiny.hpsv2(tmp_path, antialias=False)
    for picture, official in zip(GOLDEN.pictures, GOLDEN.scores["aliased"], strict=True):
        ours = torch.cat([reward(to_tensor(picture)[None], [prompt]) for prompt in store.PROMPTS[:2]])
        torch.testing.assert_close(ours, official[:2], atol=1e-4, rtol=0)
    difference = (GOLDEN.scores["aliased"] - GOLDEN.scores["score"]).abs().max()
    assert difference > 1e-2, "the golden could not tell the two apart"


@pytest.mark.parametrize("size", [(100, 224), (224, 100), (1, 900)], ids=str)
def test_sizes_that_the_official_code_refuses_are_padded_too(size):
    shown = Padded()(torch.ones(1, 3, *size))[0, 0]
    rows, columns = ((shown > 0).any(dim).nonzero().flatten() for dim in (1, 0))
    for bright, side in ((rows, size[0]), (columns, size[1])):
        length = max(1, round(side * 224 / max(size)))
        first = (224 - length) // 2
        assert bright.tolist() == list(range(first, first + length))


@pytest.mark.parametrize(
    ("version", "name"), [("2.0", "HPS_v2_compressed.pt"), ("2.1", "HPS_v2.1_compressed.pt")]
)
def test_each_version_asks_for_its_own_file(version, name, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DiffalignError, match=f"hpsv2 needs {name} of the Hugging Face repository xswu/HPSv2"):
        HPSv2(version)


def test_unknown_versions_are_refused():
    with pytest.raises(DiffalignError, match=r"unknown version of hpsv2 '2'.* Allowed: 2\.0, 2\.1"):
        HPSv2("2")
