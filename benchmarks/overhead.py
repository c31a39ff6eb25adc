"""What a policy costs over its bare denoiser: time of a rollout and of an update, as paired ratios.

A rollout is a policy's own; an update is what the trainer does between two optimizer steps: DDPO's losses,
their metrics and their backwards. "Bare" is the same module called in a plain loop on the very tensors that
the policy gave it, same batch and dtype, in the same process. Pairs alternate; medians and quartiles of
their ratios are printed.

    python benchmarks/overhead.py emoji --batch 16 --steps 10
    python benchmarks/overhead.py sd15 --batch 1 --steps 3     # random weights of Stable Diffusion 1.5's size
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from diffalign.algorithms.ddpo import DDPO
from diffalign.policy import LoraSpec, Policy
from diffalign.run import Batching, Run
from diffalign.steps import DDIM
from diffalign.training.optimize import Optimizer, OptimizerSettings
from diffalign.walk import rollout
from diffalign_rewards.jpeg_compressibility import jpeg_compressibility


def sd15() -> Any:
    """The packaged pipeline with a randomly initialised U-Net of Stable Diffusion 1.5's size."""
    from diffusers import UNet2DConditionModel

    from diffalign_demo.emoji import load_pipeline

    pipeline = load_pipeline()
    width = pipeline.text_encoder.config.hidden_size
    pipeline.unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=width).to(pipeline.unet.dtype)
    pipeline.register_modules(unet=pipeline.unet)
    return pipeline


class Work:
    """What the denoiser does during one action: the arguments of its calls, and how many backwards follow."""

    def __init__(self, module: torch.nn.Module, action: Callable[[], object]) -> None:
        self.module, self.calls, self.backwards = module, [], 0
        hook = module.register_forward_hook(self._keep, with_kwargs=True)
        action()
        hook.remove()

    def _keep(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.calls.append((args, kwargs))
        if tensor(output).requires_grad:
            tensor(output).register_hook(self._count)

    def _count(self, gradient: torch.Tensor) -> None:
        self.backwards += 1

    @property
    def amount(self) -> tuple[list[int], int]:
        """Rows of every call, and the number of backwards."""
        return [len(args[0] if args else kwargs["sample"]) for args, kwargs in self.calls], self.backwards

    def again(self) -> None:
        """The same calls of the bare module, each with a backward of its mean square where there were any."""
        with torch.set_grad_enabled(self.backwards > 0):
            for args, kwargs in self.calls:
                output = tensor(self.module(*args, **kwargs))
                if self.backwards:
                    output.square().mean().backward()


def tensor(output: Any) -> torch.Tensor:
    """What a U-Net returns, as a tuple or by name."""
    return output[0] if isinstance(output, tuple) else output.sample


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call, the accelerator's work included."""
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(name: str, module: torch.nn.Module, ours: Callable[[], object], pairs: int) -> None:
    """Print the quartiles of the ratios of `ours` to its bare calls over alternating pairs."""
    ours()  # whatever is found out once, such as whether timesteps may differ, is found out here
    work = Work(module, ours)
    if Work(module, work.again).amount != work.amount:
        raise SystemExit(
            f"{name}: the two sides call the denoiser differently; their ratio would say nothing."
        )
    timed = [(seconds(ours), seconds(work.again)) for _ in range(pairs)]
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
    batching = Batching(args.batch, 1, sample_batch=args.batch, micro_batch=args.batch)
    run = Run(policy, DDIM(), jpeg_compressibility, ["red apple"], batching)
    algorithm, settings = DDPO(advantage="batch"), OptimizerSettings(lr=1e-4, updates=1)
    optimizer = Optimizer(policy.trainable(), settings, run.accelerator)
    prompts, seeds = ["red apple"] * args.batch, list(range(args.batch))
    cond, batch = policy.encode(prompts), algorithm.collect(run)

    def sample() -> None:
        rollout(policy, run.rule, prompts, seeds, noise_seeds=seeds, group=seeds, batch=args.batch, cond=cond)

    def update() -> None:
        """As `Trainer._update`, without the optimizer's step, which the bare side leaves out too."""
        total = 0.0
        for loss in algorithm.losses(run, batch):
            optimizer.backward(loss)
            total += float(loss.detach())
        run.record("objective", total)

    compare("rollout", policy.denoiser, sample, args.pairs)
    compare("update", policy.denoiser, update, args.pairs)


if __name__ == "__main__":
    main()
