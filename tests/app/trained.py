"""Run folders as training from votes leaves them, with weights that were drawn by lot."""

from __future__ import annotations

from pathlib import Path

import torch

from diffalign.folders.runfolder import RunFolder
from diffalign.launching import build
from diffalign.policy import Policy
from diffalign.settings import config


def trained(run: Path, votes: str, *more: str, scale: float = 0.01, seed: int = 0) -> str:
    """A finished run that learned from these votes; the version of its LoRA."""
    settings = config.load("emoji-d3po-votes", [f"preferences={votes}", *more])
    policy = build.policy(settings, build.accelerator(settings))
    with torch.no_grad():
        for number, weight in enumerate(policy.trainable()):
            weight += scale * torch.randn(
                weight.shape, generator=torch.Generator().manual_seed(seed + number)
            )
    return kept(RunFolder.create(run, settings.resolved()), policy)


def kept(run: RunFolder, policy: Policy) -> str:
    """Write the weights where a run leaves them at its end."""
    policy.save(run.path / "lora")
    return policy.version
