"""Schedulers only give the grid: which one a policy's pipeline runs on, and the noise levels it sets."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.grid import Grid


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler is that of a rectified flow; having `alphas_cumprod` says nothing (UniPC, DPM)."""
    config = scheduler.config
    return (
        "FlowMatch" in type(scheduler).__name__
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )


def deterministic(scheduler: Any, family: str) -> Any:
    """A scheduler of our own with one visit to each timestep and unscaled inputs.

    Variance-preserving models get DDIM with the checkpoint's own levels (CogVideoX shifts them);
    flow models keep their scheduler, or Euler's where it visits timesteps twice.
    """
    if is_flow(scheduler):
        own = copy.deepcopy(scheduler)
        return own if own.order == 1 else FlowMatchEulerDiscreteScheduler.from_config(own.config)
    if getattr(scheduler, "alphas_cumprod", None) is None or getattr(scheduler, "betas", None) is None:
        raise DiffalignError(
            f"{family}: {type(scheduler).__name__} belongs neither to a variance-preserving diffusion model (betas) "
            "nor to a rectified flow. diffalign knows these two kinds; give the pipeline a scheduler of one of them."
        )
    ours = inspect.signature(DDIMScheduler.__init__).parameters
    other = {key: value for key, value in scheduler.config.items() if key not in ours and key[0] != "_"}
    known = {key: value for key, value in scheduler.config.items() if key not in other}
    own = DDIMScheduler.from_config(known, trained_betas=scheduler.betas.tolist())
    own.register_to_config(**other)
    own.alphas_cumprod = scheduler.alphas_cumprod.clone()
    own.final_alpha_cumprod = torch.tensor(1.0) if own.config.set_alpha_to_one else own.alphas_cumprod[0]
    return own


def own_timesteps(timesteps: Sequence[int], steps: int, scheduler: Any, family: str) -> Tensor:
    """The timesteps (N,) of a diffusion model that was distilled for these alone; raises where they cannot be set."""
    if is_flow(scheduler):
        raise DiffalignError(
            f"{family} is a flow model, whose noise levels follow from its scheduler: leave timesteps out."
        )
    known = len(scheduler.alphas_cumprod)
    falling = all(a > b for a, b in zip([known, *timesteps], [*timesteps, -1], strict=True))
    if len(timesteps) != steps or not falling:
        raise DiffalignError(
            f"timesteps {list(timesteps)} must be {steps} (steps) numbers from {known - 1} down to 0, each below the "
            "one before."
        )
    return torch.tensor(list(timesteps))


def grid_of(scheduler: Any, family: str) -> Grid:
    """The grid that the pipeline just set: timesteps, and sigmas or alphas."""
    timesteps = scheduler.all_timesteps
    if not is_flow(scheduler):
        levels, final = scheduler.alphas_cumprod, float(scheduler.final_alpha_cumprod)
        return Grid.vp(timesteps, levels, final, scheduler.config.prediction_type)
    sigmas = scheduler.all_sigmas.cpu().double()
    if len(sigmas) == len(timesteps):
        sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    if float(sigmas[-1]) != 0 or bool((sigmas.diff() >= 0).any()):
        raise DiffalignError(
            f"{family}: its noise levels {[round(s, 4) for s in sigmas.tolist()]} do not fall to 0. "
            "diffalign needs a flow whose sigmas go from noise (1) down to the sample (0)."
        )
    return Grid.from_sigmas(timesteps, sigmas)
