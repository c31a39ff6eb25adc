"""What a reward may return, and what stops a run."""

import pytest
import torch

from diffalign.errors import RunError
from diffalign.reward import kind, score

IMAGES, PROMPTS = torch.rand(3, 3, 4, 4), ["a", "b", "c"]


def mean(images, prompts):
    return images.mean((1, 2, 3))


def test_a_plain_function_is_a_reward():
    torch.testing.assert_close(score(mean, IMAGES, PROMPTS).value, IMAGES.mean((1, 2, 3)))


@pytest.mark.parametrize("bad", [lambda i, p: i.mean(), lambda i, p: i.mean((1, 2, 3))[:2], lambda i, p: 1.0])
def test_a_wrong_shape_names_the_reward_and_both_shapes(bad):
    with pytest.raises(RunError, match=r"'mine' returned shape .* for 3 pictures; .* shape \(3,\)"):
        score(bad, IMAGES, PROMPTS, "mine")


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
