"""Makes ddpo.safetensors: log-probs by the official DDPO step function.

Run in a throw-away environment with diffusers 0.17.1 and the official file of
kvablack/ddpo-pytorch at commit 1958463 (ddpo_pytorch/diffusers_patch/ddim_with_logprob.py):

    python tests/golden/make_ddpo.py PATH/TO/ddim_with_logprob.py
"""

import importlib.util
import sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file

STEPS = 20
SCHEDULER = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False,
}  # fmt: skip


def main(path: str) -> None:
    spec = importlib.util.spec_from_file_location("official", path)
    official = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(official)
    torch.manual_seed(0)
    tensors = {}
    for target in ("epsilon", "v_prediction", "sample"):
        scheduler = DDIMScheduler(**SCHEDULER, prediction_type=target)
        scheduler.set_timesteps(STEPS)
        for eta in (0.3, 1.0):
            tensors |= record(official, scheduler, f"{target}.{eta}", eta)
    save_file(tensors, Path(__file__).with_name("ddpo.safetensors"))


def record(official, scheduler, name: str, eta: float) -> dict:
    """x and the model's output at every step, the sampled next latents and their log-prob per dimension."""
    x, output = torch.randn(STEPS, 4, 4, 4), torch.randn(STEPS, 4, 4, 4)
    following, log_prob = official.ddim_step_with_logprob(scheduler, output, scheduler.timesteps, x, eta=eta)
    parts = {"x": x, "output": output, "next": following, "log_prob": log_prob}
    return {f"{name}.{key}": value.contiguous() for key, value in parts.items()}


if __name__ == "__main__":
    main(sys.argv[1])
