"""Found noise in another model: what a search found with one step, a slower model draws in many."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.policy import Policy
from diffalign.searching.task import Task
from diffalign.steps import ODE


def check(policy: Policy, other: Policy) -> None:
    """Refuse a model whose latents the noise does not fit."""
    if other.latent_shape != policy.latent_shape:
        raise DiffalignError(
            f"decode_with makes latents of shape {other.latent_shape}, and the searched model of "
            f"{policy.latent_shape}; the found noise only fits a model with the same latents."
        )


def redraw(task: Task, noise: Tensor, other: Policy) -> tuple[Tensor, dict[str, Tensor]]:
    """The samples (P, ...) that `other` makes of the noise (P, ...) found for a task's prompts, and their scores (P,).

    By its ODE: steps with noise of their own would forget the noise they began with.
    """
    check(task.policy, other)
    theirs = replace(task, policy=other, rule=ODE())
    start = noise.float() * (other.grid.initial / task.policy.grid.initial)
    seeds = theirs.seeds("steps", theirs.everyone, torch.zeros_like(theirs.everyone))
    latents = theirs.sample(start.to(other.device, other.dtype), theirs.everyone, seeds)
    return latents, theirs.score(latents, theirs.everyone)
