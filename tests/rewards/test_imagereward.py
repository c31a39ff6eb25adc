"""ImageReward on the official checkpoint format of its golden."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from golden import store
from golden.tiny_blip import imagereward
from huggingface_hub import constants
from PIL import Image
from torchvision.transforms.functional import to_tensor

from diffalign.reward import DiffalignError, sharing
from diffalign_rewards.imagereward import LONGEST, ImageReward

PROMPTS = store.PROMPTS
SMOOTH = 5e-3
"""How far scores move where nothing is rounded, on this small model."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    return imagereward(tmp_path_factory.mktemp("imagereward"))


@pytest.fixture(scope="module")
def golden():
    """Pictures (1, 3, H, W) and their official scores (pictures, prompts)."""
    stored = store.load("imagereward")
    return [to_tensor(picture)[None] for picture in stored.pictures], stored.scores["score"]


@pytest.fixture
def double(reward):
    """The same reward in double precision."""
    precise = copy.copy(reward)
    precise.model = copy.deepcopy(reward.model).double()
    return precise


def test_scores_are_the_official_ones(reward, golden):
    for images, official in zip(*golden, strict=True):
        ours = reward(images.expand(len(PROMPTS), -1, -1, -1), PROMPTS)
        torch.testing.assert_close(ours, official, atol=1e-4, rtol=0)


def test_the_smooth_path_is_close_to_the_official_scores(reward, golden):
    for images, official in zip(*golden, strict=True):
        images = images.repeat(len(PROMPTS), 1, 1, 1).requires_grad_()
        torch.testing.assert_close(reward(images, PROMPTS).detach(), official, atol=SMOOTH, rtol=0)


@pytest.mark.parametrize("index", [2, 4], ids=["enlarged", "cropped"])
def test_gradient_is_that_of_finite_differences(double, golden, index):
    images = golden[0][index].double().clamp(0.1, 0.9).requires_grad_()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(double(images, PROMPTS[:1]).sum(), images)
    ends = [double(images + step * direction, PROMPTS[:1]).detach() for step in (1e-6, -1e-6)]
    assert float((gradient * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-3)


def test_gradient_reaches_every_pixel(reward, golden):
    images = (0.02 + 0.96 * golden[0][2]).requires_grad_()
    (gradient,) = torch.autograd.grad(reward(images, PROMPTS[:1]).sum(), images)
    assert float((gradient.abs().sum(1) > 0).float().mean()) > 0.95


def test_a_score_does_not_depend_on_the_rest_of_the_batch(reward, golden):
    images = torch.cat([golden[0][2], 1 - golden[0][2], golden[0][2].flip(-1)])
    together = reward(images, PROMPTS[:3])
    alone = [reward(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)


def test_every_prompt_is_read_once(reward, golden):
    reward.read.cache_clear()
    reward.prepare(["a cat", "a dog", "a cat"])
    reward(golden[0][2].expand(2, -1, -1, -1), ["a dog", "a cat"])
    assert reward.read.cache_info().misses == 2


def test_pictures_are_looked_at_once_within_sharing(reward, golden, monkeypatch):
    images, looked = golden[0][2], []
    see = reward.model.see
    monkeypatch.setattr(reward.model, "see", lambda pixels: looked.append(1) or see(pixels))
    with sharing():
        assert torch.equal(reward(images, ["a cat"]), copy.copy(reward)(images, ["a cat"]))
    assert len(looked) == 1


def test_what_comes_after_the_longest_prompt_is_not_read(reward, golden):
    words = " ".join(["very"] * (LONGEST - 2))  # [CLS] and [SEP] are two of the tokens
    scores = reward(
        golden[0][2].expand(3, -1, -1, -1), [words, f"{words} long", words.replace("very", "long", 1)]
    )
    assert scores[0] == scores[1] != scores[2]


def test_without_weights_the_error_says_what_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DiffalignError, match=r"hf download THUDM/ImageReward`.*path: FOLDER"):
        ImageReward()
    for name in ("ImageReward.pt", "med_config.json"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DiffalignError, match=r"hf download bert-base-uncased vocab\.txt`.*vocabulary: FILE"):
        ImageReward(path=str(tmp_path))


def test_a_damaged_checkpoint_is_named(tmp_path):
    for name in ("ImageReward.pt", "med_config.json", "vocab.txt"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(DiffalignError, match=r"does not hold ImageReward's weights"):
        ImageReward(path=str(tmp_path), vocabulary=str(tmp_path / "vocab.txt"))


@pytest.mark.real_weights
def test_published_scores():
    """The README's pictures, assets/images of github.com/THUDM/ImageReward, in the folder DIFFALIGN_IMAGEREWARD."""
    folder = Path(os.environ["DIFFALIGN_IMAGEREWARD"])
    prompt = "a painting of an ocean with clouds and birds, day time, low depth field effect"
    pictures = [to_tensor(Image.open(folder / f"{i}.webp").convert("RGB"))[None] for i in range(1, 5)]
    published = torch.tensor(
        [0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492]
    )
    reward = ImageReward()
    torch.testing.assert_close(
        torch.cat([reward(p, [prompt]) for p in pictures]), published, atol=0.01, rtol=0
    )
