"""What is gained by scoring a batch while the next one is sampled: rounds with and without, in pairs.

The reward is served from a process of its own and takes as long as sampling its batch. It waits instead
of computing, as a reward on a device of its own would leave this one's cores alone.

    python benchmarks/overlap.py [--batches 4] [--batch 4] [--steps 4] [--pairs 5]
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch

from diffalign.policy import LoraSpec, Policy
from diffalign.run import Batching, Run
from diffalign.serving import isolated
from diffalign.steps import DDIM

REWARD = '''
import time

class Takes:
    """Brightness, after some seconds."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, images, prompts, **metadata):
        time.sleep(self.seconds)
        return images.mean((1, 2, 3))
'''


def seconds(run: Run) -> float:
    """Wall time of sampling and scoring a round, without what is measured of it afterwards."""
    run.sample()
    row = run.metrics.row()
    return row["seconds/sample"] + row["seconds/score"]


def quartiles(values: list[float]) -> tuple[float, ...]:
    """25, 50 and 75 %."""
    return tuple(torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist())


def measure(policy: Policy, args: argparse.Namespace, folder: Path) -> None:
    """Time pairs of rounds and print the ratio of the one without overlap to the one with."""
    (folder / "takes.py").write_text(REWARD)
    batching = Batching(args.batches, args.batch, sample_batch=args.batch)
    bare = Run(policy, DDIM(), lambda images, prompts: images.mean((1, 2, 3)), ["red apple"], batching)
    seconds(bare)
    each = quartiles([seconds(bare) for _ in range(3)])[1] / args.batches
    reward = isolated.start(sys.executable, f"{folder / 'takes.py'}:Takes", {"seconds": each})
    try:
        run, pairs = Run(policy, DDIM(), reward, ["red apple"], batching), []
        for k in range(args.pairs + 1):
            timed = {}
            for reward.remote in (False, True) if k % 2 else (True, False):
                timed[reward.remote] = seconds(run)
            pairs.append((timed[False], timed[True]))
    finally:
        reward.close()
    report(pairs[1:], each, args)


def report(pairs: list[tuple[float, float]], each: float, args: argparse.Namespace) -> None:
    """Print what was measured."""
    low, median, high = quartiles([without / overlapped for without, overlapped in pairs])
    ideal = 2 * args.batches / (args.batches + 1)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"{args.batches} batches of {args.batch}, {args.steps} steps; sampling and scoring {each:.2f} s a batch each"
    )
    print(f"one after the other {quartiles([a for a, _ in pairs])[1]:.2f} s a round", end=", ")
    print(f"overlapped {quartiles([b for _, b in pairs])[1]:.2f} s")
    print(
        f"{median:.2f}x faster (quartiles {low:.2f} to {high:.2f}, {len(pairs)} pairs; at best {ideal:.2f})"
    )


def main() -> None:
    """Measure on the packaged model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("batches", 4), ("batch", 4), ("steps", 4), ("pairs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    policy = Policy.from_pretrained("emoji", steps=args.steps, guidance_scale=3.0, lora=LoraSpec(rank=16))
    with tempfile.TemporaryDirectory() as folder:
        measure(policy, args, Path(folder))


if __name__ == "__main__":
    main()
