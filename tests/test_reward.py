"""What a reward may return, and what stops a run."""

from functools import partial

import pytest
import torch

from diffalign.errors import DiffalignError, RunError
from diffalign.reward import Scores, capability, kind, score
from diffalign.rewarding.measure import measure

IMAGES, PROMPTS = torch.rand(3, 3, 4, 4), ["a", "b", "c"]


def mean(images, prompts):
    return images.mean((1, 2, 3))


def test_a_plain_function_is_a_reward():
    torch.testing.assert_close(score(mean, IMAGES, PROMPTS).value, IMAGES.mean((1, 2, 3)))


@pytest.mark.parametrize("bad", [lambda i, p: i.mean(), lambda i, p: i.mean((1, 2, 3))[:2], lambda i, p: 1.0])
def test_a_wrong_shape_names_the_reward_and_both_shapes(bad):
    with pytest.raises(RunError, match=r"'mine' returned shape .* for 3 pictures; .* shape \(3,\)"):
        score(bad, IMAGES, PROMPTS, "mine")


def test_lists_are_numbers_and_parts_have_a_shape_too():
    scores = score(lambda i, p: Scores([1.0, 2.0, 3.0], {"x": [0, 1, 0]}), IMAGES, PROMPTS)
    assert (scores.value.tolist(), scores.parts["x"].tolist()) == ([1, 2, 3], [0, 1, 0])
    with pytest.raises(RunError, match=r"'mine.x' returned shape \(\) for 3 pictures"):
        score(lambda i, p: Scores([1.0, 2.0, 3.0], {"x": 4}), IMAGES, PROMPTS, "mine")


def unready(images, prompts):
    raise ValueError("no weights yet")


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (unready, r"'mine' raised ValueError: no weights yet \(.*test_reward.py:\d+\)"),
        (lambda i, p: None, r"'mine' returned NoneType None; it must return numbers, .* shape \(3,\)"),
        (lambda i, p: ["good", "bad", "good"], r"'mine' returned list \['good'.* must return numbers"),
    ],
)
def test_what_goes_wrong_in_a_reward_names_it(bad, expected):
    for ask in (lambda: score(bad, IMAGES, PROMPTS, "mine"), lambda: measure({"mine": bad}, IMAGES, PROMPTS)):
        with pytest.raises(RunError, match=expected):
            ask()


def test_nan_names_the_reward_and_the_prompt():
    with pytest.raises(RunError, match="'mine' returned nan for 1 of 3 pictures, the first for 'b'"):
        score(lambda i, p: torch.tensor([0.0, float("nan"), 0.0]), IMAGES, PROMPTS, "mine")


def test_the_kind_of_a_reward_is_known_from_it_and_from_its_class():
    class Group:
        def score_group(self, images, prompt): ...

    class Set:
        def score_set(self, images, prompts): ...

    class Both(Set):
        def __call__(self, images, prompts): ...

    for family, expected in ((Group, "group"), (Set, "set"), (Both, "picture")):
        assert kind(family) == kind(family()) == expected
    assert kind(mean) == "picture"


def test_a_reward_of_pictures_refuses_video_and_says_so():
    with pytest.raises(
        DiffalignError, match=r"'mine' judges pictures, and the model makes videos of 3 frames"
    ):
        score(lambda images, prompts: images.mean((1, 2, 3)), torch.rand(2, 3, 3, 8, 8), ["", ""], "mine")


def test_what_a_function_declares_survives_bound_arguments():
    def moving(images, prompts, rate=1):
        return images.mean((1, 2, 3, 4)) * rate

    moving.video = True
    assert capability(partial(moving, rate=2), "video")
    assert score(partial(moving, rate=2), torch.rand(2, 3, 3, 8, 8), ["", ""]).value.shape == (2,)
