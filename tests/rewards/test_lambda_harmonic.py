"""The λ-harmonic reward: its formula's limits, and where its references come from."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from diffalign.errors import DiffalignError
from diffalign_rewards.emoji_clip import EmojiClip
from diffalign_rewards.jpeg_compressibility import jpeg_compressibility
from diffalign_rewards.lambda_harmonic import LambdaHarmonic, harmonic

from .encoders import Bent, colours, noise, slope
from .test_fid import save

PROMPTS = ["a", "red fox", "two dogs", "house"]


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "subject", colours(3, 3, 2, 2, seed=1))


def test_the_limits_are_the_two_similarities(folder):
    images = colours(4, 3, 2, 2)
    for weight, part in ((1.0, "image"), (0.0, "text")):
        scores = LambdaHarmonic(Bent(), folder, weight)(images, PROMPTS)
        torch.testing.assert_close(scores.value, scores.parts[part], rtol=1e-6, atol=0)


def test_parts_are_mean_cosines_brought_to_0_and_1(folder):
    images, encoder = colours(4, 3, 2, 2), Bent()
    parts = LambdaHarmonic(encoder, folder)(images, PROMPTS).parts
    paths = [f"{folder}/{k:03d}.png" for k in range(3)]
    one_by_one = [LambdaHarmonic(encoder, [path])(images, PROMPTS).parts["image"] for path in paths]
    torch.testing.assert_close(parts["image"], torch.stack(one_by_one).mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(parts["text"], (encoder.cosine(images, PROMPTS) + 1) / 2)


@pytest.mark.parametrize("weight", [0.3, 0.5, 0.7])
def test_harmonic_is_below_arithmetic_and_symmetric(weight):
    image, text = torch.rand(2, 100, dtype=torch.float64)
    value = harmonic(image, text, weight)
    assert bool((value <= weight * image + (1 - weight) * text + 1e-6).all())
    torch.testing.assert_close(value, harmonic(text, image, 1 - weight))
    torch.testing.assert_close(harmonic(image, image, weight), image, rtol=1e-6, atol=1e-7)


def test_one_similarity_of_zero_spoils_the_other():
    assert float(harmonic(torch.tensor(0.0), torch.tensor(1.0), 0.5)) < 1e-7


def test_the_subject_itself_scores_highest_on_the_emoji_encoder(tmp_path):
    from diffalign_rewards import _references

    pictures = next(_references.batches(_references.find("test", "emoji")))[:8]
    reward = LambdaHarmonic(EmojiClip(), save(tmp_path / "subject", pictures[:1]), image_weight=1.0)
    assert int(reward(pictures, ["x"] * 8).value.argmax()) == 0
    assert float(reward(pictures[:1], ["x"]).value) == pytest.approx(1, abs=1e-3)


def test_gradient_is_that_of_finite_differences(folder):
    reward = LambdaHarmonic(Bent(), folder)
    assert reward.differentiable
    images, direction = colours(4, 3, 2, 2), noise(4, 3, 2, 2)
    analytic, numeric = slope(lambda x: reward(x, PROMPTS).value, images, direction)
    assert analytic == pytest.approx(numeric, rel=1e-5)
    assert abs(analytic) > 1e-4


def test_a_score_does_not_depend_on_the_batch(folder):
    reward, images = LambdaHarmonic(Bent(), folder), colours(4, 3, 2, 2)
    one_by_one = [reward(images[k : k + 1], PROMPTS[k : k + 1]).value for k in range(4)]
    torch.testing.assert_close(reward(images, PROMPTS).value, torch.cat(one_by_one))


def test_what_cannot_work_is_refused(folder, tmp_path):
    with pytest.raises(
        DiffalignError, match=r"lambda_harmonic compares with reference pictures, and /no/where"
    ):
        LambdaHarmonic(Bent(), "/no/where")
    Image.new("RGB", (4, 4)).save(tmp_path / "here.png")
    with pytest.raises(DiffalignError, match=r"absent.png does not exist"):
        LambdaHarmonic(Bent(), [str(tmp_path / "here.png"), str(tmp_path / "absent.png")])
    with pytest.raises(DiffalignError, match=r"λ of lambda_harmonic is 1.5; it must be in \[0, 1\]"):
        LambdaHarmonic(Bent(), folder, 1.5)
    with pytest.raises(DiffalignError, match="has no `embed`"):
        LambdaHarmonic(jpeg_compressibility, folder)
