"""The yardstick of a policy: the untouched pipeline, run by its own `__call__` with a first-order scheduler."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from diffalign.policy import LoraSpec, Policy
from diffalign.steps import ODE
from diffalign.walk import walk

from . import FAMILIES, Family

LORA = LoraSpec(rank=2, alpha=4)
SAMPLES = 3


class Own(NamedTuple):
    """What a pipeline made by itself: initial and final latents, and the pictures or frames."""

    start: Tensor
    end: Tensor
    pictures: Tensor


def first_order(scheduler: Any, steps: int) -> tuple[Any, dict[str, Any]]:
    """A deterministic scheduler with the noise levels of the published one, and arguments that set its grid.

    DDIM's own step takes neighbours by a fixed stride, which is wrong for linearly spaced timesteps; there
    DPM-Solver++ of order 1 is the same rule (Lu et al. 2022, section 3).
    """
    config = scheduler.config
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler | CogVideoXDDIMScheduler):
        return scheduler, {}
    if config.get("use_flow_sigmas"):
        own = type(scheduler).from_config(config, solver_order=1, disable_corrector=list(range(steps)))
        return own, {}
    ddim = DDIMScheduler.from_config(config, clip_sample=False)
    if config.timestep_spacing != "linspace":
        return ddim, {}
    ddim.set_timesteps(steps)
    return DPMSolverMultistepScheduler.from_config(config, solver_order=1), {
        "timesteps": ddim.timesteps.tolist()
    }


def run(pipe: Any, family: Family, call: dict[str, Any]) -> Own:
    """The pipeline's own `__call__`."""
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler, grid = first_order(pipe.scheduler, family.steps)
    step, seen = pipe.scheduler.step, []

    @functools.wraps(step)
    def watched(model_output: Tensor, timestep: Tensor, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = step(model_output, timestep, sample, *args, **kwargs)
        seen.append((sample, result[0]))
        return result

    pipe.scheduler.step = watched
    generators = [torch.Generator().manual_seed(seed) for seed in range(SAMPLES)]
    given = {**call, **family.inputs(SAMPLES), "num_inference_steps": family.steps, **grid}
    pictures = pipe(**given, generator=generators, output_type="pt", return_dict=False)[0]
    return Own(seen[0][0], seen[-1][1], pictures)


def arguments(family: Family, guidance: str) -> dict[str, Any]:
    return family.call if guidance == "guided" else family.call_unguided


@functools.cache
def own(name: str, guidance: str) -> Own:
    family = FAMILIES[name]
    return run(family.make(), family, arguments(family, guidance))


@functools.cache
def policy(name: str, guidance: str = "guided", predict: str = "auto") -> Policy:
    family = FAMILIES[name]
    call = arguments(family, guidance)
    ours = Policy(family.make(), steps=family.steps, call=call, lora=LORA, predict=predict)
    encode(ours, family, 2)
    return ours


def encode(policy: Policy, family: Family, n: int, first: int = 0) -> Any:
    inputs = family.inputs(n, first)
    return policy.encode(inputs.pop("prompt", None), **inputs)


@torch.no_grad()
def walked(policy: Policy, start: Tensor, cond: Any) -> Tensor:
    """The end of the deterministic walk from these latents."""
    for taken in walk(policy, ODE(), start, cond, range(len(start))):
        end = taken.next
    return end


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest deviation, relative to numbers above 1."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1))


def deviation(family: Family, predict: str = "auto") -> tuple[float, float]:
    """The errors of latents and pictures of a walk against the pipeline's own."""
    pipe = family.make()
    ours = Policy(pipe, steps=family.steps, call=family.call, lora=LORA, predict=predict)
    cond = encode(ours, family, SAMPLES)
    theirs = run(pipe, family, family.call)
    end = walked(ours, theirs.start, cond)
    return error(end, theirs.end), error(ours.decode(end), theirs.pictures)


@contextmanager
def perturbed(policy: Policy) -> Iterator[None]:
    """Give the adapter weights that matter, as after training, within the context."""
    generator, before = torch.Generator().manual_seed(3), policy.adapter_state()
    policy.load_adapter_state({k: 0.3 * torch.randn(v.shape, generator=generator) for k, v in before.items()})
    yield
    policy.load_adapter_state(before)
