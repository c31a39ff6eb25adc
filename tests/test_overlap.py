"""Scoring while sampling goes on: the same numbers, in another thread, and errors that surface."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
import served
import torch
from toys import Chain, ChainPolicy

from diffalign.errors import RunError
from diffalign.reward import Scores
from diffalign.rewarding.overlap import Ahead, apart
from diffalign.run import Batching, Run

RULE = Chain(a=(0.9, 0.8), sigma=(0.5, 0.4))
DONE = [16, 24, 30, 30]
"""Denoiser calls (2 a picture) when batch k of 4, 4, 4 and 3 is scored: batch k + 1 is sampled, k + 2 is not."""


class Watched:
    """Notes of every call: on the main thread? with gradients? after how many denoiser calls?"""

    def __init__(self, remote: bool) -> None:
        self.remote, self.notes, self.policy, self.fail = remote, [], None, False

    def __call__(self, images, prompts, **metadata):
        if self.fail:
            raise RunError("the server is gone")
        wanted = DONE[len(self.notes)] if self.remote else 0
        served.until(lambda: self.policy.denoiser_calls >= wanted, 10)
        main = threading.current_thread() is threading.main_thread()
        self.notes.append((main, torch.is_grad_enabled(), self.policy.denoiser_calls))
        value = (images.sum(1) + torch.tensor([float(len(p)) for p in prompts])).sin()
        return Scores(value, {"first": images[:, 0]}, images.std(1))


def run(reward, **more) -> Run:
    batching = Batching(prompts_per_round=5, images_per_prompt=3, sample_batch=4)
    made = Run(ChainPolicy(2, 3), RULE, reward, ["a", "bb", "ccc", "dddd", "eeeee"], batching)
    reward.policy = made.policy
    return made


def test_the_next_batch_is_sampled_while_the_last_is_scored_and_no_bit_changes():
    there, here = Watched(remote=True), Watched(remote=False)
    ahead, after = run(there), run(here)
    one, other = ahead.sample(), after.sample()
    assert there.notes == [(False, False, calls) for calls in DONE]
    assert here.notes == [(True, False, 30)] * 4
    assert torch.equal(one.states, other.states)
    assert one.rewards.keys() == other.rewards.keys()
    assert all(torch.equal(one.rewards[name], values) for name, values in other.rewards.items())
    assert ahead.reward_calls == after.reward_calls == 15


def test_an_error_in_the_other_thread_stops_the_run():
    reward = Watched(remote=True)
    made = run(reward)
    reward.fail = True
    with pytest.raises(RunError, match="the server is gone"):
        made.sample()
    assert made.policy.denoiser_calls < 2 * 15


def test_a_reward_that_compares_a_prompts_pictures_waits_for_all_of_them():
    class Ranks:
        remote = True

        def score_group(self, images, prompt, **metadata):
            assert len(images) == 3
            return images.sum(1).argsort().argsort().float()

    batch = run(Ranks()).sample()
    assert batch.rewards["reward"].reshape(5, 3).sort(1).values.tolist() == [[0.0, 1.0, 2.0]] * 5


@pytest.mark.parametrize(
    ("kinds", "on_cpu", "on_gpu"),
    [
        (["remote"], True, True),
        (["cpu_only"], False, True),
        (["remote", "cpu_only"], False, True),
        (["remote", "here"], False, False),
    ],
)
def test_what_runs_apart_from_the_policy(kinds, on_cpu, on_gpu):
    rewards = [SimpleNamespace(**{kind: True}) for kind in kinds]
    assert apart(rewards, torch.device("cpu")) is on_cpu
    assert apart(rewards, torch.device("cuda")) is on_gpu


def test_results_come_in_the_order_of_the_calls():
    with Ahead[int]() as ahead:
        for k in range(20):
            ahead.call(lambda k=k: k)
        assert ahead.results() == list(range(20))


def test_leaving_with_an_error_does_not_wait():
    release, start = threading.Event(), time.monotonic()

    def leave():
        with Ahead[bool]() as ahead:
            ahead.call(lambda: release.wait(20))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave()
    assert time.monotonic() - start < 10
    release.set()
