"""Peak memory of an update against the bare denoiser's forward and backward of one micro-batch.

Every line is a process of its own; on a CPU it is the growth of its resident peak over the loaded model.

    python benchmarks/memory.py [--micro-batch 16]
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import torch

from diffalign.algorithms.d3po import D3PO
from diffalign.algorithms.prdp import PRDP
from diffalign.metrics import peak_memory_mb
from diffalign.policy import LoraSpec, Policy
from diffalign.run import Batching, Run
from diffalign.steps import DDIM
from diffalign_rewards.jpeg_compressibility import jpeg_compressibility

ALGORITHMS = {"d3po": D3PO(), "prdp": PRDP()}
CASES = [
    ("bare", 10, 2), ("d3po", 5, 2), ("d3po", 10, 2), ("d3po", 20, 2), ("d3po", 10, 4), ("d3po", 10, 8),
    ("prdp", 5, 2), ("prdp", 10, 2), ("prdp", 20, 2), ("prdp", 10, 4), ("prdp", 10, 8), ("prdp", 10, 16),
]  # fmt: skip


def measure(name: str, steps: int, pictures: int, micro_batch: int) -> float:
    """MB that one update needs beyond the loaded model and its rollout."""
    policy = Policy.from_pretrained("emoji", steps=steps, guidance_scale=3.0, lora=LoraSpec(rank=16))
    batching = Batching(2, pictures, sample_batch=2, micro_batch=micro_batch)
    run = Run(policy, DDIM(), jpeg_compressibility, ["red apple", "cat face"], batching)
    algorithm = ALGORITHMS.get(name, D3PO())
    batch = algorithm.collect(run)
    before = peak_memory_mb()
    bare(policy, micro_batch) if name == "bare" else update(run, algorithm, batch)
    return peak_memory_mb() - before


def bare(policy: Policy, micro_batch: int) -> None:
    """Forward and backward of the denoiser on a doubled micro-batch, as guidance makes it."""
    x = torch.randn(2 * micro_batch, *policy.latent_shape)
    text = torch.randn(2 * micro_batch, 12, policy.denoiser.config.cross_attention_dim)
    for _ in range(3):
        policy.denoiser(x, 500, text, return_dict=False)[0].square().mean().backward()


def update(run: Run, algorithm: D3PO | PRDP, batch: object) -> None:
    """All losses of the first minibatch."""
    for loss in algorithm.losses(run, next(iter(algorithm.minibatches(run, batch)))):
        loss.backward()


def main() -> None:
    """Measure every case, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", nargs=3)
    parser.add_argument("--micro-batch", type=int, default=16)
    args = parser.parse_args()
    if args.case:
        print(measure(args.case[0], int(args.case[1]), int(args.case[2]), args.micro_batch))
        return
    print(f"micro_batch {args.micro_batch}\nalgorithm  steps  pictures per prompt  MB")
    for name, steps, pictures in CASES:
        command = [sys.executable, __file__, "--case", name, str(steps), str(pictures)]
        command += ["--micro-batch", str(args.micro_batch)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(f"{name:9}  {steps:5}  {pictures:19}  {float(found.split()[-1]):.0f}")


if __name__ == "__main__":
    main()
