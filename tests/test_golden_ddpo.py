"""Our DDIM log-probs are those of the official DDPO code (golden/make_ddpo.py says which)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from golden.make_ddpo import SCHEDULER, STEPS
from safetensors.torch import load_file

from diffalign.grid import Grid
from diffalign.steps import DDIM

GOLDEN = load_file(Path(__file__).with_name("golden") / "ddpo.safetensors")


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("target", ["epsilon", "v_prediction", "sample"])
def test_log_probs_are_those_of_the_official_step(target, eta):
    scheduler = DDIMScheduler(**SCHEDULER, prediction_type=target)
    scheduler.set_timesteps(STEPS)
    grid = Grid.vp(
        scheduler.timesteps, scheduler.alphas_cumprod, float(scheduler.final_alpha_cumprod), target
    )
    x, output, following, official = (
        GOLDEN[f"{target}.{eta}.{k}"] for k in ("x", "output", "next", "log_prob")
    )
    ours = DDIM(eta)(output, x, grid, torch.arange(STEPS)).log_prob(following) / x[0].numel()
    torch.testing.assert_close(ours, official, rtol=1e-5, atol=1e-5)
