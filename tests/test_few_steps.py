"""Runs of one, two and four steps: as good a policy as any, and at no timestep but those of the run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffalign.errors import DiffalignError
from diffalign.policy import Policy

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
