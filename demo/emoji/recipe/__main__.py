"""`python -m diffalign_demo.emoji.recipe data|vae|unet|clip|noisy_clip|pairs|turbo|card|all --out DIR`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from . import card, clip, data, noisy_clip, pairs, turbo, turbocard, unet, vae

TRAINED = {
    "vae": vae,
    "unet": unet,
    "clip": clip,
    "noisy_clip": noisy_clip,
    "turbo": turbo,
}
STEPS = ("data", "vae", "unet", "clip", "noisy_clip", "pairs", "turbo", "card")
GOES_WITH = {"steps": TRAINED, "rate": TRAINED, "start": ("vae", "unet")}


def main(arguments: list[str] | None = None) -> None:
    """Runs one step, or all in order; a training that was interrupted goes on from its checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m diffalign_demo.emoji.recipe", description=__doc__)
    parser.add_argument("what", choices=[*STEPS, "all"])
    parser.add_argument("--out", type=Path, required=True, help="folder for pictures, prompts, base and clip")
    parser.add_argument("--work", type=Path, help="folder for downloads and checkpoints [OUT/work]")
    parser.add_argument(
        "--steps", type=int, help="optimizer steps of a single training, instead of the recipe's own"
    )
    parser.add_argument("--rate", type=float, help="peak learning rate of a single training")
    parser.add_argument("--start", type=Path, help="vae, unet: a pipeline whose weights to go on from")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(arguments)
    for name, steps in GOES_WITH.items():
        if getattr(options, name) is not None and options.what not in steps:
            parser.error(f"--{name} goes with one of {', '.join(steps)}, not with {options.what!r}")
    torch.set_num_threads(options.threads)
    for step in STEPS if options.what == "all" else (options.what,):
        run(step, options.out, options.work or options.out / "work", steps=options.steps,
            rate=options.rate, start=options.start)  # fmt: skip


def run(
    step: str,
    out: Path,
    work: Path,
    *,
    steps: int | None = None,
    rate: float | None = None,
    start: Path | None = None,
) -> None:
    """One step of the recipe, into `out`."""
    if step == "data":
        data.build(out, work / "packages")
    elif step == "pairs":
        pairs.build(out, work)
    elif step == "card":
        card.grids(out)
        turbocard.compare(out)
    else:
        schedule = TRAINED[step].SCHEDULE
        schedule = dataclasses.replace(schedule, steps=steps or schedule.steps, rate=rate or schedule.rate)
        TRAINED[step].train(out, work, schedule, **({"start": start} if start else {}))


if __name__ == "__main__":
    main()
