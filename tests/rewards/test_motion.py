"""Motion smoothness and dynamic degree on videos whose motion is known."""

from __future__ import annotations

import pytest
import torch

from diffalign.errors import DiffalignError
from diffalign_rewards import _motion
from diffalign_rewards.dynamic_degree import DynamicDegree
from diffalign_rewards.motion_smoothness import MotionSmoothness

from .encoders import colours, noise, slope

SMOOTH, DYNAMIC = MotionSmoothness(), DynamicDegree()


def square(places, side=64, size=20):
    """A video (1, F, 3, side, side) of a bright square on a dark ground; places (F, 2) of its corner."""
    frames = torch.full((len(places), 3, side, side), 0.2)
    for frame, (top, left) in zip(frames, places, strict=True):
        frame[:, top : top + size, left : left + size] = 0.9
    return frames[None]


def steady(down, right, count=6):
    return square([(15 + down * k, 15 + right * k) for k in range(count)])


def texture(places, side=64):
    """A camera that looks at a blurred random scene from these places (F, 2)."""
    generator = torch.Generator().manual_seed(0)
    scene = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 130, 130, generator=generator), 5, 1)[0]
    return torch.stack([scene[:, top : top + side, left : left + side] for top, left in places])[None]


def smooth(video):
    return float(SMOOTH(video, [""])[0])


def dynamic(video):
    return float(DYNAMIC(video, [""])[0])


@pytest.mark.parametrize("video", [steady(0, 0), torch.zeros(1, 4, 3, 64, 64), texture([(9, 9)] * 4)])
def test_a_static_video_is_smooth_and_does_not_move(video):
    assert smooth(video) == 1
    assert dynamic(video) == 0


@pytest.mark.parametrize("step", [(1, 0), (0, 3), (2, -2), (4, 4)])
def test_even_motion_is_smooth_at_any_speed_within_reach(step):
    pan = texture([(30 + k * step[0], 30 + k * step[1]) for k in range(5)])
    assert smooth(pan) == pytest.approx(1, abs=1e-6)
    assert smooth(steady(*step)) > 0.99


@pytest.mark.parametrize("scene", [square, texture])
def test_jitter_is_less_smooth_than_even_motion_of_the_same_speed(scene):
    even = scene([(20, 16 + 3 * k) for k in range(8)])
    jitter = scene([(20, 20 + 3 * (k % 2)) for k in range(8)])
    assert dynamic(even) == pytest.approx(dynamic(jitter), rel=0.05)
    assert smooth(jitter) < smooth(even) - 0.003


def test_more_jitter_is_less_smooth():
    scores = [smooth(texture([(20, 20 + size * (k % 2)) for k in range(8)])) for size in (0, 1, 2, 4)]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4


def test_flicker_and_cuts_are_less_smooth_than_a_moving_camera():
    pan = texture([(9 + 2 * k, 9 + 3 * k) for k in range(6)])
    flicker = texture([(9, 9)] * 6) * torch.tensor([1.0, 0.7] * 3)[:, None, None, None]
    cut = texture([(9, 9)] * 3 + [(60, 50)] * 3)
    assert smooth(flicker) < smooth(pan) - 0.05
    assert smooth(cut) < smooth(pan) - 0.01


def test_flicker_costs_its_size():
    """Grey frames of 0.5 and 0.7 in turn: every frame is 0.2 off."""
    levels = torch.tensor([0.5, 0.7] * 3)[:, None, None, None].expand(-1, 3, 64, 64)
    assert smooth(levels[None]) == pytest.approx(0.8)


def test_dynamic_degree_is_the_speed():
    for speed in (0.0, 1.0, 2.0, 3.0, 4.0):
        found = dynamic(steady(0, int(speed), 5))
        assert found == pytest.approx(speed / 64, abs=0.25 / 64), speed
    assert dynamic(texture([(20 + 3 * k, 20 + 4 * k) for k in range(5)])) == pytest.approx(
        5 / 64, abs=0.1 / 64
    )


@pytest.mark.parametrize("direction", [(1, 0), (0, 1)], ids=["down", "right"])
def test_dynamic_degree_rises_with_the_speed_below_a_pixel_too(direction):
    """Scenes of 256 pixels, moved by single pixels: quarters of the pixels that motion is looked at with."""
    generator = torch.Generator().manual_seed(0)
    scene = torch.nn.functional.avg_pool2d(torch.rand(1, 3, 400, 400, generator=generator), 15, 1)[0]

    def pan(step):
        corners = [(step * k * direction[0], step * k * direction[1]) for k in range(4)]
        return torch.stack([scene[:, top : top + 256, left : left + 256] for top, left in corners])[None]

    found = [256 * dynamic(pan(step)) for step in range(9)]
    assert found == pytest.approx(list(range(9)), abs=0.15)


@pytest.mark.parametrize("video", [texture([(9, 9)] * 4), torch.full((1, 4, 3, 64, 64), 0.5)])
def test_noise_of_two_grey_levels_is_hardly_motion(video):
    assert dynamic(video + 2 / 255 * noise(1, 4, 3, 64, 64).float()) < 0.25 / 64


def test_a_small_moving_thing_counts():
    small = square([(20, 20 + 3 * k) for k in range(4)], size=6)
    assert dynamic(small) > 1 / 64


@pytest.mark.parametrize("reward", [SMOOTH, DYNAMIC])
@pytest.mark.parametrize("shape", [(20, 33), (8, 8), (64, 200), (130, 70)])
def test_other_sizes_give_scores_of_the_same_scale(reward, shape):
    scores = reward(colours(2, 4, 3, *shape).float(), ["", ""])
    assert scores.shape == (2,)
    assert bool(((scores >= 0) & (scores <= 1)).all())


@pytest.mark.parametrize("reward", [SMOOTH, DYNAMIC])
def test_a_score_does_not_depend_on_the_batch(reward):
    clips = torch.cat([steady(0, 2), steady(3, 1), texture([(k, 2 * k) for k in range(6)])])
    one_by_one = [reward(clips[k : k + 1], [""]) for k in range(3)]
    torch.testing.assert_close(reward(clips, [""] * 3), torch.cat(one_by_one))


@pytest.mark.parametrize("reward", [SMOOTH, DYNAMIC])
def test_gradient_is_that_of_finite_differences(reward):
    """Of a moving scene with noise: where nothing is exactly equal, nothing has a kink."""
    clips = texture([(20 + k, 20 + 2 * k) for k in range(4)]).double() + 0.02 * noise(1, 4, 3, 64, 64)
    direction = noise(1, 4, 3, 64, 64, seed=1)
    analytic, numeric = slope(lambda x: reward(x, [""]), clips, direction, step=1e-7)
    assert analytic == pytest.approx(numeric, rel=1e-3)
    assert abs(analytic) > 1e-4


@pytest.mark.parametrize("reward", [SMOOTH, DYNAMIC])
def test_gradient_ascent_raises_the_score(reward):
    clips = (
        texture([(20, 20 + 2 * (k % 2)) for k in range(4)]) + 0.02 * noise(1, 4, 3, 64, 64).float()
    ).requires_grad_()
    before = reward(clips, [""])
    (gradient,) = torch.autograd.grad(before.sum(), clips)
    after = reward((clips + 0.3 * gradient / gradient.norm()).detach(), [""])
    assert float(after - before.detach()) > 0


def test_pictures_and_short_videos_are_refused():
    with pytest.raises(
        DiffalignError, match=r"motion_smoothness judges videos .* got shape \(2, 3, 64, 64\)"
    ):
        SMOOTH(torch.rand(2, 3, 64, 64), ["", ""])
    with pytest.raises(DiffalignError, match=r"at least 3 frames; got shape \(1, 2, 3, 64, 64\)"):
        SMOOTH(torch.rand(1, 2, 3, 64, 64), [""])
    with pytest.raises(DiffalignError, match=r"dynamic_degree judges videos .* at least 2 frames"):
        DYNAMIC(torch.rand(1, 1, 3, 64, 64), [""])


def test_blocks_are_followed_where_they_went():
    """`follow` at a displacement is `moved` at it, for all blocks and for one of them."""
    frames = colours(1, 3, 40, 40)
    way = torch.tensor([2, -3])[None, :, None, None].expand(1, 2, 4, 4)
    assert torch.equal(_motion.follow(frames, way), _motion.moved(frames, 2, -3))
    one = torch.zeros(1, 2, 4, 4, dtype=torch.long)
    one[0, :, 1, 2] = torch.tensor([4, 1])
    followed = _motion.follow(frames, one)
    assert torch.equal(followed[..., 8:16, 16:24], _motion.moved(frames, 4, 1)[..., 8:16, 16:24])
    assert torch.equal(followed[..., :8, :], _motion.moved(frames)[..., :8, :])
