"""Runs of one, two and four steps: as good a policy as any, and at no timestep but those of the run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler, PixArtAlphaPipeline

from diffalign.errors import DiffalignError
from diffalign.models.schedulers import own_timesteps
from diffalign.policy import Policy
from diffalign.steps import Consistency
from diffalign.walk import walk

from .families import FAMILIES, TRAPS, Family
from .families.compare import LORA, deviation, encode, error

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ["StableDiffusion", "StableDiffusionInpaint", "StableDiffusionXL", "StableDiffusion3", "Flux",
         "PixArtSigma", "ZImage", "Wan"]  # fmt: skip


def few(family: Family, steps: int, predict: str = "auto") -> Policy:
    ours = Policy(family.make(), steps=steps, call=family.call, lora=LORA, predict=predict)
    encode(ours, family, 2)
    return ours


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_few_steps_are_the_pipelines_own(name: str, steps: int) -> None:
    assert max(deviation(replace(FAMILIES[name], steps=steps), "template")) <= 1e-5


@pytest.mark.parametrize("name", ["Wan22", "CogVideoXDynamicGuidance"])
def test_one_step_of_a_trap_is_the_pipelines_own(name: str) -> None:
    assert max(deviation(replace(TRAPS[name], steps=1))) <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_one_step_predicts_what_replay_predicts(name: str) -> None:
    fast, slow = few(FAMILIES[name], 1, "template"), few(FAMILIES[name], 1, "replay")
    x, time = fast.noise([5, 6]), fast.grid.timesteps[[0, 0]]
    theirs = slow.predict(x, time, encode(slow, FAMILIES[name], 2))
    assert error(fast.predict(x, time, encode(fast, FAMILIES[name], 2)), theirs) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_one_step_refuses_any_other_timestep(name: str) -> None:
    ours = few(FAMILIES[name], 1)
    cond = encode(ours, FAMILIES[name], 2)
    for off in (0.5, 100):
        time = ours.grid.timesteps[[0, 0]].double() - torch.tensor([0, off])
        with pytest.raises(DiffalignError, match="not all on the grid"):
            ours.predict(ours.noise([5, 6]), time, cond)


@torch.no_grad()
def test_own_timestep_of_a_model_distilled_for_it_is_the_pipelines_own() -> None:
    """PixArt's DMD model is called at timestep 400 with pure noise, and its pipeline ends at the clean sample."""
    family = FAMILIES["PixArtSigma"]
    call = {**family.call_unguided, "use_resolution_binning": False}
    pipe = PixArtAlphaPipeline(**family.make().components)
    ours = Policy(pipe, steps=1, timesteps=[400], call=call, lora=False)
    start, cond = ours.noise([1, 2]), ours.encode(family.prompts[:2])
    (taken,) = walk(ours, Consistency(), start, cond, [0, 0])
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    given = {
        **call,
        "prompt": family.prompts[:2],
        "timesteps": [400],
        "num_inference_steps": 1,
        "latents": start,
    }
    theirs = pipe(**given, output_type="pt", return_dict=False)[0]
    assert ours.grid.timesteps.tolist() == [400]
    assert error(ours.decode(taken.next), theirs) <= 1e-5


@pytest.mark.parametrize(
    ("timesteps", "steps"), [([400, 400], 2), ([400], 2), ([1000], 1), ([-1], 1), ([1, 2], 2)]
)
def test_timesteps_that_are_no_grid_are_refused(timesteps: list[int], steps: int) -> None:
    with pytest.raises(DiffalignError, match="from 999 down to 0"):
        own_timesteps(timesteps, steps, DDPMScheduler(), "a pipeline")


def test_own_timesteps_of_a_flow_are_refused() -> None:
    with pytest.raises(DiffalignError, match=r"flow model.*leave timesteps out"):
        Policy(FAMILIES["Flux"].make(), steps=1, timesteps=[400], lora=False)
