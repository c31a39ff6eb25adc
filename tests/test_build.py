"""A config's keys reach the objects they are for, names become objects, and what was opened is closed."""

from __future__ import annotations

import sys
from contextlib import ExitStack

import pytest
import torch
from accelerate import Accelerator
from toys import ChainPolicy

from diffalign import registry
from diffalign.errors import DiffalignError
from diffalign.folders.runfolder import RunFolder
from diffalign.launching import build
from diffalign.rewarding.combine import MeanMinusStd
from diffalign.settings import config

OWN = """
from diffalign.reward import Reward

OPEN = []

class Held:
    def __init__(self, called: str = "held"):
        self.called = called
        OPEN.append(called)
    def close(self):
        OPEN.remove(self.called)
    def __call__(self, images, prompts, **metadata):
        return images.mean((1, 2, 3))

class Lift:
    video = True
    def __init__(self, reward: Reward):
        self.reward = reward
    def __call__(self, videos, prompts, **metadata):
        return self.reward(videos[:, 0], prompts)
"""
PLAIN = {
    "model": "emoji", "steps": 2, "algorithm": "ddpo", "prompts": "animals", "heldout_prompts": "animals-heldout",
    "rounds": 1, "prompts_per_round": 2, "images_per_prompt": 2, "lr": 1e-3, "diversity": None,
    "rewards": {"a": "own_here:Held"}, "eval_rewards": "emoji_clip",
}  # fmt: skip


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_here.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_here", None)
    import own_here

    return own_here


def settings(**changes):
    return config.load_raw(PLAIN | changes)


def test_a_composition_is_what_the_config_says(own):
    chosen = settings(
        rewards={"a": "own_here:Held", "b": "jpeg_compressibility"}, calibrate=True, normalize="after",
        combine={"name": "mean_minus_std", "penalty": 2.0},
    )  # fmt: skip
    with ExitStack() as undo:
        made = build.composition(chosen, undo)
        assert list(made.rewards) == ["a", "b"]
        assert made.combiner == MeanMinusStd(2.0)
        assert (made.calibrate, made.normalize) == (True, "after")
        assert own.OPEN == ["held"]
    assert own.OPEN == []


def test_weights_go_by_label(own):
    chosen = settings(rewards={"emoji_clip": 2.0, "jpeg_compressibility": 0.5}, eval_rewards="own_here:Held")
    assert build.composition(chosen, ExitStack()).weights == {"emoji_clip": 2.0, "jpeg_compressibility": 0.5}


def test_a_run_that_cannot_be_built_leaves_nothing_open(own, tmp_path):
    with pytest.raises(Exception, match="no/such"):
        build.trainer(settings(model="no/such"), RunFolder.create(tmp_path / "run", {}))
    assert own.OPEN == []


@pytest.mark.weights
def test_a_trainer_closes_what_it_trains_on_and_what_only_judges(own, tmp_path):
    judges = {"b": {"name": "own_here:Held", "called": "judge"}}
    trainer = build.trainer(settings(eval_rewards=judges), RunFolder.create(tmp_path / "run", {}))
    assert own.OPEN == ["held", "judge"]
    trainer.close()
    assert own.OPEN == []


class Video(ChainPolicy):
    """Four frames of one pixel."""

    def decode(self, latents):
        return latents.reshape(-1, 1, 3, 1, 1).expand(-1, 4, 3, 1, 1)


class Pictures(ChainPolicy):
    def decode(self, latents):
        return torch.rand(len(latents), 3, 4, 4)


def test_rewards_of_pictures_are_refused_for_a_video_model_before_anything_is_sampled(own):
    model = Video(2, 3)
    picture = registry.reward("jpeg_compressibility")
    with pytest.raises(
        DiffalignError, match="'plain' judges pictures, and the model makes videos of 4 frames"
    ):
        build.refuse_videos(model, {"plain": picture})
    lifted = registry.reward("own_here:Lift", reward="jpeg_compressibility")
    build.refuse_videos(model, {"lifted": lifted})
    build.refuse_videos(Pictures(2, 3), {"plain": picture})
    assert model.denoiser_calls == 0


@pytest.mark.weights
@pytest.mark.parametrize(("text", "call"), [("", {"negative_prompt": ""}), (None, {})])
def test_the_empty_negative_prompt_is_one(text: str | None, call: dict[str, str]):
    settings = config.load("emoji-ddpo", ["steps=2", "rule.quiet_last=0"])
    settings = settings.model_copy(update={"negative_prompt": text})
    found = build.policy(settings, Accelerator(cpu=True)).shell.call
    assert {name: value for name, value in found.items() if name == "negative_prompt"} == call
