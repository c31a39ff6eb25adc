"""Vendi score against its closed forms."""

from __future__ import annotations

import pytest
import torch

from diffalign.errors import DiffalignError
from diffalign.reward import sharing
from diffalign_rewards.emoji_clip import EmojiClip
from diffalign_rewards.jpeg_compressibility import jpeg_compressibility
from diffalign_rewards.vendi import Vendi

from .encoders import Bent, Pixels, as_pictures, colours, noise, slope

ORDERS = [0.5, 1.0, 2.0, float("inf")]


@pytest.mark.parametrize("q", ORDERS)
def test_copies_of_one_picture_count_once(q):
    images = colours(1, 3, 2, 2).expand(7, -1, -1, -1)
    assert float(Vendi(Pixels(), q).score_set(images, [""] * 7)) == pytest.approx(1)


@pytest.mark.parametrize("q", ORDERS)
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_orthogonal_pictures_all_count_whatever_their_brightness(q, scale):
    images = as_pictures(torch.eye(6)[:5] * scale)
    assert float(Vendi(Pixels(), q).score_set(images, [""] * 5)) == pytest.approx(5)


@pytest.mark.parametrize(
    ("q", "expected"), [(1.0, (4 / 3) ** 0.75 * 4**0.25), (2.0, 1.6), (torch.inf, 4 / 3)]
)
def test_three_alike_and_one_apart(q, expected):
    images = as_pictures(torch.eye(6)[[0, 0, 0, 1]])
    assert float(Vendi(Pixels(), q).score_set(images, [""] * 4)) == pytest.approx(expected)


@pytest.mark.parametrize("n", [5, 6, 7, 40])
def test_both_forms_are_the_definition(n):
    """exp(-tr(K/n log K/n)) with the whole kernel matrix, for fewer and more pictures than features."""
    features = noise(n, 6)
    unit = features / features.norm(dim=1, keepdim=True)
    shares = torch.linalg.eigvalsh(unit @ unit.T / n).clamp_min(0)
    expected = float(torch.exp(-torch.special.xlogy(shares, shares).sum()))
    assert float(Vendi(Pixels()).score_set(as_pictures(features), [""] * n)) == pytest.approx(expected)


def test_batches_add_up_in_any_order():
    vendi, features = Vendi(Pixels()), noise(17, 6)
    parts = [vendi.statistics(part) for part in features.split([3, 10, 4])]
    whole = vendi.value(vendi.statistics(features))
    torch.testing.assert_close(vendi.value(parts[2] + (parts[0] + parts[1])), whole)


@pytest.mark.parametrize("n", [4, 9])
@pytest.mark.parametrize("q", ORDERS)
def test_gradient_is_that_of_finite_differences(n, q):
    vendi = Vendi(Bent(), q)
    images, direction = colours(n, 3, 2, 2), noise(n, 3, 2, 2)
    analytic, numeric = slope(lambda x: vendi.score_set(x, [""] * n), images, direction)
    assert analytic == pytest.approx(numeric, rel=1e-5)
    assert abs(analytic) > 1e-3


def test_large_sets_are_looked_at_in_portions():
    class Counting(Pixels):
        def embed(self, images):
            seen.append(len(images))
            return super().embed(images)

    seen: list[int] = []
    Vendi(Counting()).score_set(colours(150, 3, 1, 2), [""] * 150)
    assert seen == [64, 64, 22]


def test_several_set_rewards_look_at_the_pictures_once():
    first, second, seen = Vendi(EmojiClip()), Vendi(EmojiClip(), q=2.0), []
    handle = first.encoder.tower.model.visual.register_forward_hook(
        lambda m, i, output: seen.append(len(output))
    )
    images = colours(70, 3, 64, 64).float()
    with sharing(), torch.no_grad():
        for vendi in (first, second):
            vendi.score_set(images, [""] * 70)
    handle.remove()
    assert seen == [64, 6]


def test_a_real_encoder_finds_different_pictures_more_diverse_than_alike_ones():
    images = colours(6, 3, 64, 64).float()
    alike = images[:1] + 0.01 * (images - images[:1])
    vendi = Vendi(EmojiClip())
    assert float(vendi.score_set(images, [""] * 6)) > 1.02 * float(vendi.score_set(alike, [""] * 6))


@pytest.mark.parametrize("shape", [(3, 4, 3, 8, 8), (3, 8, 8), (0, 3, 8, 8)])
def test_what_is_not_a_set_of_pictures_is_refused(shape):
    with pytest.raises(DiffalignError, match=r"vendi judges sets .* got shape \(" + str(shape[0])):
        Vendi(Pixels()).score_set(torch.rand(shape), [""])


def test_an_encoder_without_features_is_refused():
    with pytest.raises(DiffalignError, match="vendi needs an encoder with `embed"):
        Vendi(jpeg_compressibility)


def test_an_order_of_zero_is_refused():
    with pytest.raises(DiffalignError, match="order q of vendi is 0"):
        Vendi(Pixels(), 0)
