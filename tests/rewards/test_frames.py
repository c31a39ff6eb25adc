"""A reward of pictures lifted to video: how frames become one score."""

from __future__ import annotations

import pytest
import torch

from diffalign import registry
from diffalign.errors import DiffalignError
from diffalign.reward import Scores, sharing
from diffalign_rewards.emoji_clip import EmojiClip
from diffalign_rewards.frames import Frames
from diffalign_rewards.vendi import Vendi

from .encoders import Bent, Pixels, colours, noise, slope


def brightness(images, prompts):
    """One known score a frame; parts and uncertainty that are known from it."""
    value = images.mean((1, 2, 3))
    length = torch.tensor([float(len(p)) for p in prompts])
    return Scores(value, {"double": 2 * value, "length": length}, uncertainty=value / 10)


def videos(scores):
    """Videos (B, F, 3, 2, 2) whose frames have these brightnesses (B, F)."""
    return torch.as_tensor(scores)[:, :, None, None, None].expand(-1, -1, 3, 2, 2)


SCORES = torch.tensor([[0.4, 0.1, 0.9, 0.2], [0.5, 0.8, 0.3, 0.7]])
PROMPTS = ["cat", "a fox"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [0.4, 0.575]),
        ({"reduce": "min"}, [0.1, 0.3]),
        ({"reduce": "last"}, [0.2, 0.7]),
        ({"stride": 2}, [0.65, 0.4]),
        ({"stride": 3, "reduce": "min"}, [0.2, 0.5]),
        ({"stride": 9}, [0.4, 0.5]),
    ],
    ids=str,
)
def test_known_scores_are_reduced(arguments, expected):
    scores = Frames(brightness, **arguments)(videos(SCORES), PROMPTS)
    torch.testing.assert_close(scores.value, torch.tensor(expected))
    torch.testing.assert_close(scores.parts["double"], 2 * torch.tensor(expected))
    torch.testing.assert_close(scores.parts["length"], torch.tensor([3.0, 5.0]))
    torch.testing.assert_close(scores.uncertainty, torch.tensor(expected) / 10)


def softmin(temperature, scores=SCORES):
    return Frames(brightness, "softmin", temperature)(videos(scores), ["x"] * len(scores)).value


def test_softmin_is_its_formula():
    expected = -0.3 * (SCORES / -0.3).exp().mean(1).log()
    torch.testing.assert_close(softmin(0.3), expected)


def test_softmin_lies_between_min_and_mean_and_reaches_both():
    least, mean = SCORES.amin(1), SCORES.mean(1)
    torch.testing.assert_close(softmin(1e-4), least, rtol=0, atol=2e-4)
    torch.testing.assert_close(softmin(1e4), mean, rtol=0, atol=1e-5)
    between = torch.stack([softmin(t) for t in (1e-3, 0.01, 0.1, 1.0, 10.0)])
    assert bool((between.diff(dim=0) > 0).all())
    assert bool(((between > least) & (between < mean)).all())


def test_no_frame_of_softmin_gains_by_getting_worse():
    scores = SCORES.double().requires_grad_()
    (gradient,) = torch.autograd.grad(softmin(0.05, scores).sum(), scores)
    assert bool((gradient >= 0).all())
    torch.testing.assert_close(gradient.sum(1), torch.ones(2, dtype=torch.float64))


def test_a_picture_is_a_video_of_one_frame():
    images = colours(2, 3, 2, 2)
    for arguments in ({}, {"reduce": "last"}, {"reduce": "softmin", "temperature": 0.1}):
        lifted = Frames(brightness, **arguments)
        torch.testing.assert_close(lifted(images, PROMPTS).value, images.mean((1, 2, 3)))


def test_a_score_does_not_depend_on_the_batch_nor_on_the_portions():
    long = colours(3, 50, 3, 2, 2)
    lifted, prompts = Frames(brightness, "softmin", 0.1), ["a", "bb", "ccc"]
    one_by_one = [lifted(long[k : k + 1], prompts[k : k + 1]) for k in range(3)]
    together = lifted(long, prompts)
    torch.testing.assert_close(together.value, torch.cat([s.value for s in one_by_one]))
    torch.testing.assert_close(together.parts["length"], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))


@pytest.mark.parametrize(
    "arguments", [{}, {"reduce": "min"}, {"reduce": "softmin", "temperature": 0.05}, {"stride": 2}], ids=str
)
def test_gradient_is_that_of_finite_differences(arguments):
    class First(Bent):
        def __call__(self, images, prompts):
            return self.embed(images)[:, 0]

    lifted = Frames(First(), **arguments)
    assert lifted.differentiable
    images, direction = colours(2, 5, 3, 2, 2), noise(2, 5, 3, 2, 2)
    analytic, numeric = slope(lambda x: lifted(x, PROMPTS).value, images, direction)
    assert analytic == pytest.approx(numeric, rel=1e-5)
    assert abs(analytic) > 1e-3


def test_a_config_nests_the_reward():
    lifted = registry.reward("frames", reward={"name": "emoji_clip", "score": "style"}, reduce="min")
    clips, prompts = colours(2, 3, 3, 64, 64).float(), ["cat", "dog"]
    expected = torch.stack([EmojiClip("style")(clips[:, k], prompts) for k in range(3)]).amin(0)
    torch.testing.assert_close(lifted(clips, prompts).value, expected, rtol=0, atol=1e-5)
    assert lifted.video


def test_lifted_rewards_share_the_frames_of_a_video():
    """Two of them over one tower look at each frame once."""
    first, second = (Frames(EmojiClip(score)) for score in ("match", "style"))
    clips, seen = colours(2, 3, 3, 64, 64).float(), []
    tower = first.reward.tower
    handle = tower.model.visual.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    with sharing(), torch.no_grad():
        first(clips, ["cat", "dog"])
        second(clips, ["cat", "dog"])
    handle.remove()
    assert seen == [6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reduce": "max"}, "max"),
        ({"reduce": "softmin"}, "temperature None; softmin needs one above 0"),
        ({"reduce": "softmin", "temperature": 0.0}, "temperature 0.0"),
        ({"temperature": 1.0}, "the others take none"),
        ({"stride": 0}, "stride of frames is 0"),
        ({"stride": 2, "reduce": "last"}, "1 for the last frame"),
    ],
    ids=str,
)
def test_arguments_that_mean_nothing_are_refused(arguments, message):
    with pytest.raises(DiffalignError, match=message):
        Frames(brightness, **arguments)


def test_a_reward_of_sets_is_refused():
    with pytest.raises(DiffalignError, match="frames lifts rewards of single pictures; Vendi is none"):
        Frames(Vendi(Pixels()))


def test_it_says_of_itself_what_the_reward_can():
    assert not Frames(brightness).differentiable
    assert Frames(Pixels()).differentiable
