"""The packaged noise-aware judge: what it sees through noise, on names it never saw, and its gradient."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from diffusers import AutoencoderKL

from diffalign.guided import Guided
from diffalign.policy import Policy
from diffalign.search.nrg import NRG
from diffalign.steps import ODE
from diffalign_demo import emoji
from diffalign_demo.emoji.recipe import clip, noisy_clip
from diffalign_rewards.emoji_clip import EmojiClip
from diffalign_rewards.emoji_noisy_clip import EmojiNoisyClip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def unseen():
    """Every fifth picture of the names that neither judge knows."""
    every = clip.load_set(emoji.PICTURES, unseen=True)
    return clip.Set(every.pictures[::5], every.names[::5], every.styles[::5])


@pytest.fixture(scope="module")
def latents(unseen):
    judge, _ = noisy_clip.load_judge(emoji.ROOT)
    vae = AutoencoderKL.from_pretrained(emoji.BASE / "vae")
    return noisy_clip.Pictures.of(judge, vae, unseen.pictures).latents


def levels(count, noise):
    return torch.full((count,), math.sqrt(1 - noise * noise)), torch.full((count,), noise)


def seen(reward, latents, names, noise):
    signal, level = levels(len(latents), noise)
    eps = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    return reward.score_noisy(signal[0] * latents + noise * eps, names, signal, level)


@pytest.mark.parametrize(("noise", "share"), [(0.25, 0.7), (0.75, 0.6)])
def test_it_tells_3d_from_flat_through_noise(unseen, latents, noise, share):
    right = (seen(EmojiNoisyClip("style"), latents, unseen.names, noise) > 0) == torch.tensor(
        [style == "3d" for style in unseen.styles]
    )
    assert float(right.float().mean()) > share


def test_it_foresees_the_match_of_pictures_it_never_saw_better_than_of_others(unseen, latents):
    match = EmojiNoisyClip()
    right, wrong = (
        seen(match, latents, names, 0.5) for names in (unseen.names, unseen.names[7:] + unseen.names[:7])
    )
    assert float((right - wrong).mean()) > 0.05


def test_the_more_noise_the_less_it_says(unseen, latents):
    spread = [
        float(seen(EmojiNoisyClip(), latents, unseen.names, noise).std()) for noise in (0.25, 0.9, 0.998)
    ]
    assert spread == sorted(spread, reverse=True)


def test_latents_of_a_flow_are_judged_as_those_of_the_diffusion_with_the_same_ratio(latents):
    reward, names = EmojiNoisyClip(), ["cat"] * 4
    signal, noise = levels(4, 0.6)
    scale = 1 / (signal + noise)
    assert torch.allclose(
        reward.score_noisy(latents[:4] * scale[0], names, signal * scale, noise * scale),
        reward.score_noisy(latents[:4], names, signal, noise),
        atol=1e-5,
    )


def test_gradient_is_that_of_finite_differences(latents):
    reward = EmojiNoisyClip()
    reward.noisy = copy.deepcopy(reward.noisy).double()
    x = latents[:1].double().requires_grad_()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signal, noise = (level.double() for level in levels(1, 0.5))
    (slope,) = torch.autograd.grad(reward.score_noisy(x, ["cat"], signal, noise).sum(), x)
    with torch.no_grad():
        ends = [reward.score_noisy(x + s * 1e-6 * direction, ["cat"], signal, noise) for s in (1, -1)]
    assert float((slope * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-4)


def test_clean_pictures_are_judged_as_by_the_judge_it_learned_from(unseen):
    images = (unseen.pictures[:16] + 1) / 2
    names = unseen.names[:16]
    both = torch.stack([EmojiNoisyClip("style")(images, names), EmojiClip("style")(images, names)])
    assert float(torch.corrcoef(both)[0, 1]) > 0.5


def test_the_card_says_what_the_weights_do_and_they_are_small(unseen):
    folder = emoji.ROOT / "noisy_clip"
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 3_000_000
    card = json.loads((folder / "card.json").read_text())
    assert [float(level) for level in card] == list(noisy_clip.LEVELS)
    assert card["0.5"]["style"] > 0.7


def test_it_guides_the_emoji_model_towards_its_own_score():
    policy = Policy.from_pretrained("emoji", steps=4, guidance_scale=3.0, lora=None)
    guide, judge = EmojiNoisyClip("style"), EmojiClip("style")
    texts = ["cat", "red apple"]
    base = NRG(guide, w=0.0)(policy, texts, judge, rule=ODE())
    led = NRG(guide, w=30.0)(policy, texts, judge, rule=ODE())
    clean = torch.ones(2), torch.zeros(2)
    with torch.no_grad():
        gained = guide.score_noisy(led.latents, texts, *clean) - guide.score_noisy(
            base.latents, texts, *clean
        )
    assert bool((gained > 0).all())
    assert [(c.denoiser_calls, c.gradients) for c in led.costs] == [(4, 4)] * 2
    assert Guided(policy, guide, 1.0).encode(texts).prompts == texts
