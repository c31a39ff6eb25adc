"""The conformance kit finds what is wrong with a reward, each fault by its own check, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffalign.authoring import subject
from diffalign.authoring.conformance import CHECKS, conform, examine
from diffalign.authoring.cost import cost
from diffalign.errors import DiffalignError
from diffalign.reward import Scores

pytestmark = pytest.mark.usefixtures("one_thread")


def bright(images, prompts):
    return images.flatten(1).mean(1)


class Smooth:
    """A small model in single precision, as plug-ins have them."""

    differentiable = True

    def __init__(self):
        torch.manual_seed(0)
        self.parts = {"model": nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh())}

    def __call__(self, images, prompts):
        return self.parts["model"](images).mean((1, 2, 3))


class Halved(Smooth):
    def __call__(self, images, prompts):
        return super().__call__(images / 2 + images.detach() / 2, prompts)


class Colourblind(Smooth):
    """Its gradient leaves out one colour."""

    def __call__(self, images, prompts):
        return super().__call__(torch.cat([images[:, :1].detach(), images[:, 1:]], 1), prompts)


class Cut(Smooth):
    def __call__(self, images, prompts):
        return super().__call__(images.detach(), prompts)


class Ranks:
    def score_group(self, images, prompt):
        return images.mean((1, 2, 3)).argsort().argsort().float()


class Spread:
    def score_set(self, images, prompts):
        return images.flatten(1).var(0).mean()


class Moves:
    video = differentiable = True

    def __call__(self, images, prompts):
        return (images[:, 1:] - images[:, :-1]).square().mean((1, 2, 3, 4))


class Quoting:
    example_prompts = ('a sign that says "go"',)

    def __call__(self, images, prompts):
        if not all('"' in prompt for prompt in prompts):
            raise DiffalignError("quote something")
        return torch.tensor([float(len(prompt.split('"')[1])) for prompt in prompts])


@pytest.mark.parametrize(
    "reward", [bright, Smooth(), Ranks(), Spread(), Moves(), Quoting()], ids=lambda r: type(r).__name__
)
def test_what_is_right_passes(reward):
    conform(reward)
    assert {found.check for found in examine(reward)} == set(CHECKS)


def test_video_rewards_see_videos_and_others_pictures():
    assert subject.Subject.of(Moves()).pictures(2).ndim == 5
    assert subject.Subject.of(bright).pictures(2).ndim == 4


class Counting:
    """Another answer every time."""

    def __init__(self):
        self.calls = 0

    def __call__(self, images, prompts):
        self.calls += 1
        return bright(images, prompts) + self.calls


def spoiling(images, prompts):
    images.clamp_(0.4, 0.6)
    return bright(images, prompts)


def rewording(images, prompts):
    prompts.append("and more")
    return bright(images, prompts)[: len(images)]


def contrasting(images, prompts):
    return images.flatten(1).mean(1) - images.mean()


FAULTS = {
    "shapes and types": [
        lambda images, prompts: images.mean((2, 3)),
        lambda images, prompts: torch.ones(len(prompts), dtype=torch.int64),
        lambda images, prompts: Scores(bright(images, prompts), {"half": torch.ones(1)}),
    ],
    "plain pictures": [lambda images, prompts: images.flatten(1).mean(1) / images.flatten(1).std(1)],
    "very small, very wide": [
        lambda images, prompts: bright(nn.functional.conv2d(images, torch.ones(1, 3, 11, 11)), prompts)
    ],
    "prompts": [
        lambda images, prompts: torch.tensor([float(ord(prompt[0])) for prompt in prompts]),
        lambda images, prompts: torch.tensor([float(len(prompt.encode("latin-1"))) for prompt in prompts]),
        lambda images, prompts: torch.tensor([float("nan") if len(p) > 1000 else 0.0 for p in prompts]),
    ],
    "independent of the batch": [contrasting],
    "repeatable": [Counting()],
    "inputs unchanged": [spoiling, rewording],
    "gradient": [Halved(), Colourblind(), Cut()],
}


@pytest.mark.parametrize(
    ("check", "reward"), [(check, reward) for check, rewards in FAULTS.items() for reward in rewards]
)
def test_each_fault_is_found_by_its_check(check, reward):
    failed = {found.check: found.note for found in examine(reward) if found.verdict == "failed"}
    assert check in failed
    with pytest.raises(AssertionError, match=f"does not conform:(.|\n)*{check}"):
        conform(reward)


def test_a_group_reward_that_depends_on_the_order_is_found():
    class First:
        def score_group(self, images, prompt):
            return torch.arange(float(len(images)))

    failed = [found.check for found in examine(First()) if found.verdict == "failed"]
    assert failed == ["independent of the batch"]


def test_a_model_is_left_in_its_own_precision():
    reward = Smooth()
    before = [parameter.clone() for parameter in reward.parts["model"].parameters()]
    conform(reward)
    for parameter, expected in zip(reward.parts["model"].parameters(), before, strict=True):
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, expected)


def test_a_reward_that_insists_on_single_precision_is_compared_in_it():
    class Single(Smooth):
        def __call__(self, images, prompts):
            assert images.dtype == torch.float32
            return super().__call__(images, prompts)

    class Worse(Single):
        def __call__(self, images, prompts):
            return super().__call__(images / 2 + images.detach() / 2, prompts)

    conform(Single())
    assert [found.check for found in examine(Worse()) if found.verdict == "failed"] == ["gradient"]


def hungry(images, prompts):
    return torch.ones(len(images), 4_000_000).mean(1)  # 16 MB a picture


def test_cost_counts_what_a_call_takes():
    seconds, megabytes = cost(hungry)
    assert seconds > 0
    assert 12 < megabytes < 40


def test_cost_counts_memory_that_earlier_work_left_free():
    pieces = [bytes(60_000) for _ in range(4000)]  # 240 MB, each too small for the system to take back alone
    last = bytes(60_000)
    del pieces
    assert 12 < cost(hungry)[1] < 40
    assert len(last) == 60_000


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_its_check_is_skipped_and_says_so():
    (found,) = (found for found in examine(bright) if found.check == "CPU and GPU")
    assert (found.verdict, found.note) == ("skipped", "there is no GPU here")
