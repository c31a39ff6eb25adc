"""The packaged judge on the packaged pictures, and its gradient."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from diffalign_demo.emoji import pictures
from diffalign_rewards.emoji_clip import EmojiClip


@pytest.fixture(scope="module")
def rows():
    chosen = [row for row in pictures() if row["split"] != "clip_test"][::40]
    decoded = [Image.open(io.BytesIO(row["webp"])).convert("RGB") for row in chosen]
    return torch.stack([pil_to_tensor(image) for image in decoded]) / 255, chosen


def test_match_prefers_the_right_name(rows):
    images, chosen = rows
    match, names = EmojiClip("match"), [row["name"] for row in chosen]
    right = match(images, names)
    wrong = match(images, names[7:] + names[:7])
    assert float((right > wrong).float().mean()) > 0.95


def test_style_tells_3d_from_flat(rows):
    images, chosen = rows
    score = EmojiClip("style")(images, [row["name"] for row in chosen])
    is_3d = torch.tensor([row["style"] == "3d" for row in chosen])
    assert float(((score > 0) == is_3d).float().mean()) > 0.95


def test_style_words_in_the_prompt_do_not_matter_to_style(rows):
    images, _ = rows
    style = EmojiClip("style")
    assert torch.equal(
        style(images[:2], ["red apple"] * 2), style(images[:2], ["3d red apple", "flat red apple"])
    )


@pytest.mark.parametrize("score", ["match", "style"])
def test_gradient_is_that_of_finite_differences(rows, score):
    reward = EmojiClip(score)
    reward.tower = copy.deepcopy(reward.tower)
    reward.tower.model.double()
    images = rows[0][:1].double().clamp(0.1, 0.9).requires_grad_()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(reward(images, ["cat"]).sum(), images)
    step = 1e-6
    with torch.no_grad():
        ends = [reward(images + s * step * direction, ["cat"]) for s in (1, -1)]
    numeric = float((ends[0] - ends[1]) / (2 * step))
    assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-3)


def test_other_sizes_are_resized(rows):
    large = torch.nn.functional.interpolate(rows[0][:4], (96, 96), mode="bicubic", antialias=True).clamp(0, 1)
    names = [row["name"] for row in rows[1][:4]]
    assert float((EmojiClip()(large, names) - EmojiClip()(rows[0][:4], names)).abs().max()) < 0.1
