"""What a policy costs over its bare denoiser: time of a rollout and of an update, as paired ratios.

"Bare" is the same module called in a plain loop on the very tensors that the policy gave it, same
batch and dtype, in the same process. Pairs alternate; medians and quartiles of their ratios are printed.

    python benchmarks/overhead.py emoji --batch 16 --steps 10
    python benchmarks/overhead.py sd15 --batch 1 --steps 3     # random weights of Stable Diffusion 1.5's size
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from diffalign.policy import LoraSpec, Policy
from diffalign.steps import DDIM
from diffalign.walk import log_prob, rollout


def sd15() -> Any:
    """The packaged pipeline with a randomly initialised U-Net of Stable Diffusion 1.5's size."""
    from diffusers import UNet2DConditionModel

    from diffalign_demo.emoji import load_pipeline

    pipeline = load_pipeline()
    width = pipeline.text_encoder.config.hidden_size
    pipeline.unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=width).to(pipeline.unet.dtype)
    pipeline.register_modules(unet=pipeline.unet)
    return pipeline


class Recorder:
    """Keeps the arguments of the denoiser's calls, to repeat them on the bare module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module, self.calls = module, []
        self.hook = module.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.append((args, kwargs))

    def repeat(self, *, backward: bool) -> None:
        """The recorded calls, with a backward of the output's mean square where asked."""
        for args, kwargs in self.calls:
            output = self.module(*args, **kwargs)
            output = output[0] if isinstance(output, tuple) else output.sample
            if backward:
                output.square().mean().backward()


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call, the accelerator's work included."""
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(name: str, ours: Callable[[], object], bare: Callable[[], object], pairs: int) -> None:
    """Print the quartiles of the ratios ours / bare over alternating pairs."""
    ours(), bare()
    timed = [(seconds(ours), seconds(bare)) for _ in range(pairs)]
    ratios = torch.tensor([a / b for a, b in timed])
    low, median, high = ratios.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    base = sorted(b for _, b in timed)[len(timed) // 2]
    print(
        f"{name:8} {median:.3f}x bare (quartiles {low:.3f} to {high:.3f}, {pairs} pairs, bare {base:.3f} s)"
    )


def main() -> None:
    """Measure rollout and update."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", choices=["emoji", "sd15"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=15)
    args = parser.parse_args()
    options: dict[str, Any] = {"steps": args.steps, "guidance_scale": 3.0, "lora": LoraSpec(rank=16)}
    if args.model == "sd15":
        vae_scale = 4  # the packaged VAE's; latents of 64 x 64 as Stable Diffusion's
        size = {"height": 64 * vae_scale, "width": 64 * vae_scale}
        policy = Policy(sd15(), call=size, **options)
    else:
        policy = Policy.from_pretrained("emoji", **options)
    measure(policy, args)


def measure(policy: Policy, args: argparse.Namespace) -> None:
    """Rollout against forwards, update against forwards and backwards."""
    prompts, seeds = ["red apple"] * args.batch, list(range(args.batch))
    cond, rule = policy.encode(prompts), DDIM()

    def ours() -> Any:
        return rollout(
            policy, rule, prompts, seeds, noise_seeds=seeds, group=seeds, batch=args.batch, cond=cond
        )

    ours()  # whatever is found out once, such as whether timesteps may differ, is found out here
    recorder = Recorder(policy.denoiser)
    batch = ours()
    # capturing the conditioning calls a stub that shares the module's hooks; the real calls come after it
    recorder.calls = recorder.calls[-args.steps :]
    recorder.hook.remove()
    compare("rollout", ours, torch.no_grad()(lambda: recorder.repeat(backward=False)), args.pairs)

    def update() -> None:
        for k in range(args.steps):
            rows = torch.arange(args.batch)
            log_prob(policy, batch, rows, torch.full_like(rows, k)).mean().backward()

    compare("update", update, lambda: recorder.repeat(backward=True), args.pairs)


if __name__ == "__main__":
    main()
