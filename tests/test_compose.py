"""Rewards are measured once, and combined when everything about a prompt is there."""

from __future__ import annotations

import pytest
import torch

from diffalign.errors import DiffalignError, RunError
from diffalign.reward import Scores, capability, once, score
from diffalign.rewarding.combine import LogSigmoid, MeanMinusVariance, Min, WeightedSum
from diffalign.rewarding.compose import COMBINERS, Base, Composite, composed, within
from diffalign.rewarding.lagrangian import Lagrangian
from diffalign.rewarding.measure import close, measure, measure_set

IMAGES, PROMPTS = torch.rand(6, 3, 4, 4), ["a", "a", "a", "b", "b", "b"]
GROUP = torch.tensor([0, 0, 0, 1, 1, 1])


def mean(images, prompts):
    return images.mean((1, 2, 3))


def red(images, prompts):
    return 100 * images[:, 0].mean((1, 2))


class Rank:
    """A picture's place among those of its prompt."""

    def __init__(self):
        self.calls = []

    def score_group(self, images, prompt, **metadata):
        self.calls.append((len(images), prompt))
        return images.mean((1, 2, 3)).argsort().argsort().float()


def base_of(**statistics):
    return lambda prompts: Base(
        {label: m for label, (m, _) in statistics.items()}, {label: s for label, (_, s) in statistics.items()}
    )


def test_a_weighted_sum_keeps_its_parts():
    def parted(images, prompts):
        return Scores(mean(images, prompts), {"x": mean(images, prompts) + 1}, mean(images, prompts) / 2)

    scores = score(Composite({"m": mean, "s": parted}, {"m": 2.0, "s": -1.0}), IMAGES, PROMPTS)
    torch.testing.assert_close(scores.value, mean(IMAGES, PROMPTS))
    assert list(scores.parts) == ["m", "s", "s.x", "s.uncertainty"]


def test_a_single_reward_is_a_composite_of_one():
    one = composed(mean)
    assert composed(one) is one
    torch.testing.assert_close(one.combine(one.measure(IMAGES, PROMPTS), PROMPTS), mean(IMAGES, PROMPTS))


def test_capabilities_are_those_of_all():
    class Smooth:
        differentiable = video = True

        def __call__(self, images, prompts): ...

    assert capability(Composite({"s": Smooth()}), "differentiable")
    assert capability(Composite({"s": Smooth()}), "video")
    for name in ("differentiable", "video"):
        assert not capability(Composite({"s": Smooth(), "m": mean}), name)


def test_what_rewards_share_is_computed_once_and_prompts_are_prepared_once():
    towers, texts = [], []

    class Clip:
        def prepare(self, prompts):
            texts.append(prompts)

        def __call__(self, images, prompts):
            return once("tower", images, lambda: towers.append(1) or images.mean((1, 2, 3)))

    both = Composite({"a": Clip(), "b": Clip()})
    both.prepare(PROMPTS)
    both.measure(IMAGES, PROMPTS)
    assert (towers, texts) == ([1], [["a", "b"], ["a", "b"]])


def test_a_group_reward_is_asked_once_a_group():
    for group, expected in (
        (GROUP, [(3, "a"), (3, "b")]),
        (torch.tensor([0, 0, 1, 2, 2, 2]), [(2, "a"), (1, "a"), (3, "b")]),  # the same prompt drawn twice
        (None, [(3, "a"), (3, "b")]),
    ):
        rank = Rank()
        found = measure({"rank": rank, "m": mean}, IMAGES, PROMPTS, group)
        assert rank.calls == expected
        assert found["rank"].shape == (6,)
    by_hand = torch.cat([mean(IMAGES[rows], None).argsort().argsort() for rows in (slice(3), slice(3, 6))])
    torch.testing.assert_close(found["rank"], by_hand.float())
    assert Composite({"rank": rank}).compares
    assert not Composite({"m": mean}).compares


def test_faults_name_the_label():
    with pytest.raises(RunError, match="'far' returned nan"):
        measure({"far": lambda i, p: mean(i, p) * float("nan")}, IMAGES, PROMPTS)

    class Wrong(Rank):
        def score_group(self, images, prompt):
            return images.mean()

    with pytest.raises(RunError, match=r"'rank' returned shape \(\) for 3 pictures"):
        measure({"rank": Wrong()}, IMAGES, PROMPTS)

    class Broken:
        def score_set(self, images, prompts):
            return torch.tensor(float("inf"))

    with pytest.raises(RunError, match="'fid' returned inf for a set of 6 pictures"):
        measure_set(Broken(), IMAGES, PROMPTS, "fid")


def test_a_reward_of_pictures_refuses_video_and_names_frames():
    video = torch.rand(2, 5, 3, 4, 4)
    with pytest.raises(
        DiffalignError, match=r"'m' judges pictures, and the model makes videos of 5 frames.*`frames`"
    ):
        measure({"m": mean}, video, ["a", "b"])

    class Video:
        video = True

        def __call__(self, images, prompts):
            return images.mean((1, 2, 3, 4))

    assert measure({"v": Video()}, video, ["a", "b"])["v"].shape == (2,)


def test_only_what_can_be_closed_is_closed():
    class Far:
        closed = False

        def close(self):
            self.closed = True

    far = Far()
    close({"far": far, "m": mean})
    assert far.closed


# -- scales and normalisation -----------------------------------------------------------------


def test_z_scores_are_those_of_the_base_model():
    both = Composite(
        {"m": mean, "r": red}, calibrate=True, combiner=Min(), base=base_of(m=(0.5, 0.1), r=(50.0, 5.0))
    )
    parts = {"m": torch.tensor([0.7, 0.5]), "r": torch.tensor([55.0, 30.0])}
    assert both.combine(parts, ["a", "b"]).tolist() == pytest.approx([1.0, -4.0])


def test_without_anyone_who_measured_the_base_the_error_says_so():
    for composite in (Composite({"m": mean}, calibrate=True), Composite({"m": mean}, combiner=LogSigmoid())):
        with pytest.raises(DiffalignError, match="nobody measured them"):
            composite(IMAGES, PROMPTS)


PARTS = {
    "a": torch.tensor([0.0, 2.0, 1.0, 5.0, 5.0, 5.0]),
    "b": torch.tensor([300.0, 100.0, 200.0, 10.0, 20.0, 60.0]),
}


def normalised(how: str, combiner=None, **more) -> torch.Tensor:
    composite = Composite(
        dict.fromkeys(PARTS, mean), combiner=combiner or WeightedSum(), normalize=how, **more
    )
    return composite.combine(PARTS, PROMPTS, GROUP)


def test_before_and_after_are_not_equivalent():
    """Three pictures where a and b disagree: equal votes before, while after it is the larger scale that wins."""
    before, after, none = (normalised(how) for how in ("before", "after", "none"))
    assert none.tolist() == [300, 102, 201, 15, 25, 65]
    assert before[:3].tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    half = 1.5**0.5  # z-scores of 1, 2, 3 are -sqrt(3/2), 0, sqrt(3/2)
    torch.testing.assert_close(after[:3], torch.tensor([half, -half, 0.0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(before[3:], after[3:], atol=1e-5, rtol=0)  # a does not vary there
    for total in (before, after):
        torch.testing.assert_close(total.reshape(2, 3).mean(1), torch.zeros(2), atol=1e-6, rtol=0)


def test_before_brings_ensembles_to_one_scale():
    assert normalised("before", Min())[:3].tolist() == pytest.approx([-(1.5**0.5), -(1.5**0.5), 0], abs=1e-4)
    assert normalised("before", MeanMinusVariance(0.5))[2].item() == pytest.approx(0)


def test_a_constant_group_has_no_say():
    assert within(torch.full((3,), 0.3), torch.zeros(3)).tolist() == [0, 0, 0]


def test_without_groups_before_falls_back_on_the_base_and_after_on_nothing():
    base = base_of(a=(1.0, 2.0), b=(0.0, 100.0))
    before = Composite(dict.fromkeys(PARTS, mean), normalize="before", base=base).combine(PARTS, PROMPTS)
    torch.testing.assert_close(before, (PARTS["a"] - 1) / 2 + PARTS["b"] / 100)
    after = Composite(dict.fromkeys(PARTS, mean), normalize="after").combine(PARTS, PROMPTS)
    torch.testing.assert_close(after, PARTS["a"] + PARTS["b"])


def test_levels_and_bounds_are_scaled_as_the_scores_are():
    known = Base(
        {"a": 1.0, "b": 0.0}, {"a": 2.0, "b": 100.0}, {"a": torch.ones(6), "b": torch.full((6,), 100.0)}
    )
    one = Composite(
        dict.fromkeys(PARTS, mean), combiner=LogSigmoid(), calibrate=True, base=lambda prompts: known
    )
    by_hand = ((PARTS["a"] - 1) / 2).sigmoid().log() + (PARTS["b"] / 100 - 1).sigmoid().log()
    torch.testing.assert_close(one.combine(PARTS, PROMPTS), by_hand)
    other = Composite(
        dict.fromkeys(PARTS, mean), combiner=Lagrangian(["b >= 50"], rate=1.0, start=2.0), calibrate=True,
        base=lambda prompts: known,
    )  # fmt: skip
    torch.testing.assert_close(
        other.combine(PARTS, PROMPTS), (PARTS["a"] - 1) / 2 + 2 * (PARTS["b"] - 50) / 100
    )
    other.observe({"total": 0.0, "a": 1.0, "b": 150.0})
    assert other.combiner.row() == {"multiplier/b >= 50": pytest.approx(1.0)}  # 2 - 1 sd of slack


@pytest.mark.parametrize(
    ("name", "normalize"),
    [
        (name, how) for name in sorted(COMBINERS) for how in ("none", "before", "after")
        if not (COMBINERS[name].absolute and how == "before")
    ],
)  # fmt: skip
def test_gradients_reach_the_pictures(name, normalize):
    combiner = COMBINERS[name](
        **({"constraints": ["r >= 0.1"], "start": 1.0} if name == "lagrangian" else {})
    )
    levels = {label: torch.full((6,), 0.5) for label in "mr"}
    one = Composite(
        {"m": mean, "r": lambda i, p: i[:, 0].mean((1, 2))}, combiner=combiner, normalize=normalize,
        base=lambda prompts: Base({"m": 0.5, "r": 0.5}, {"m": 0.1, "r": 0.2}, levels),
    )  # fmt: skip
    images = IMAGES.clone().requires_grad_()
    total = one.combine(one.measure(images, PROMPTS), PROMPTS, GROUP)
    (slope,) = torch.autograd.grad(total @ torch.arange(6.0), images)
    assert slope.isfinite().all()
    assert slope.flatten(1).norm(dim=1).gt(0).sum() >= 5  # min and median may leave one out
    plain = images.detach().requires_grad_()
    (alone,) = torch.autograd.grad(one(plain, PROMPTS).value.sum(), plain)
    assert alone.flatten(1).norm(dim=1).gt(0).all()
