"""`python -m diffalign_demo.emoji.recipe data|vae|unet|clip|card|all --out DIR`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from . import card, clip, data, unet, vae

TRAINED = {"vae": vae, "unet": unet, "clip": clip}
STEPS = ("data", *TRAINED, "card")


def main(arguments: list[str] | None = None) -> None:
    """Runs one step, or all in order; a training that was interrupted goes on from its checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m diffalign_demo.emoji.recipe", description=__doc__)
    parser.add_argument("what", choices=[*STEPS, "all"])
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures, prompts, base and clip")
    parser.add_argument("--work", type=Path, help="folder for downloads and checkpoints [OUT/work]")
    parser.add_argument(
        "--steps", type=int, help="optimizer steps of a single training, instead of the recipe's own"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    if options.steps is not None and options.what not in TRAINED:
        parser.error(f"--steps goes with one of {', '.join(TRAINED)}, not with {options.what!r}")
    torch.set_num_threads(options.threads)
    for step in STEPS if options.what == "all" else (options.what,):
        run(step, options.out, options.work or options.out / "work", options.steps)


def run(step: str, out: Path, work: Path, steps: int | None = None) -> None:
    """One step of the recipe, into `out`."""
    if step == "data":
        data.build(out, work / "packages")
    elif step == "card":
        card.grids(out)
    else:
        schedule = TRAINED[step].SCHEDULE
        TRAINED[step].train(out, work, dataclasses.replace(schedule, steps=steps or schedule.steps))


if __name__ == "__main__":
    main()
