"""What the rewards cost, and what caching, sharing and batching save. Real sizes, random weights.

    python benchmarks/rewards.py texts             # prompts that were seen before, against new ones
    python benchmarks/rewards.py shared            # several rewards over one CLIP tower, against one of them
    python benchmarks/rewards.py batched [NAME]    # a batch against picture by picture, as the official code does it
    python benchmarks/rewards.py cost [NAME ...]   # seconds and MB of a picture, as a table

Times are seconds of a processor core, on one thread, so that they hold on a machine that has other work, too.
`batched hpsv2 --official PYTHON` also asks the hpsv2 package itself; PYTHON is that of an environment which
holds it (tests/golden/make_hpsv2.py says how to make one).
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import platform
import subprocess
import time
from collections.abc import Callable
from functools import partial

import torch
import untrained

from diffalign import registry
from diffalign.authoring.cost import BATCH, cost
from diffalign.authoring.subject import Subject
from diffalign.rewarding.measure import measure
from diffalign_rewards import _open_clip

PROMPTS = ["a photo of a red apple", "two cats, 3d", "a sign in a busy street at night", "an old ship at sea"]

WITHOUT_WEIGHTS = {
    "emoji_clip": {}, "jpeg_compressibility": {}, "jpeg_incompressibility": {}, "ocr": {}, "safety": {},
    "motion_smoothness": {}, "dynamic_degree": {}, "frames": {"reward": "emoji_clip"},
    "vendi": {"encoder": "emoji_clip"}, "fid": {"encoder": "emoji_clip", "reference": "emoji"},
    "kid": {"encoder": "emoji_clip", "reference": "emoji"},
    "lambda_harmonic": {"encoder": "emoji_clip", "references": "emoji"},
}  # fmt: skip
"""Rewards that need no download, and over what they are measured."""

OFFICIAL = """
import sys, time
import torch; torch.set_num_threads(1)
from functools import partial
from unittest.mock import patch
import numpy as np
from PIL import Image
from hpsv2 import img_score
create = img_score.create_model_and_transforms
with patch.object(img_score, "create_model_and_transforms", lambda name, _, **k: create(name, None, **k)):
    img_score.initialize_model()
torch.load = lambda *_, **__: {"state_dict": img_score.model_dict["model"].state_dict()}
count, pairs = int(sys.argv[1]), int(sys.argv[2])
draw = lambda k: Image.fromarray(np.random.RandomState(k).randint(0, 256, (256, 256, 3), np.uint8))
pictures = [draw(k) for k in range(count + 1)]
def seconds(some):
    start = time.process_time()
    img_score.score(some, "a photo of a red apple", cp="none")
    return time.process_time() - start
seconds(pictures[:1])
print(*((seconds(pictures) - seconds(pictures[:1])) / count for _ in range(pairs)))
"""
"""Seconds a picture of the official package; loading the checkpoint, as it does at each call, is not counted."""


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """Noise of 256 x 256 pixels."""
    return torch.rand(count, 3, 256, 256, generator=torch.Generator().manual_seed(seed))


def seconds(action: Callable[[], object]) -> float:
    """Core seconds of one call."""
    start = time.process_time()
    action()
    return time.process_time() - start


def compare(name: str, one: Callable[[], object], other: Callable[[], object], pairs: int) -> None:
    """Print the quartiles of the ratios of the times of `one` to those of `other`, over alternating pairs."""
    seconds(one), seconds(other)
    timed = []
    for k in range(pairs):
        if k % 2:
            timed.append((seconds(one), seconds(other)))
        else:
            timed.append((seconds(other), seconds(one))[::-1])
    low, median, high = quartiles([a / b for a, b in timed])
    base = quartiles([b for _, b in timed])[1]
    print(f"{name}: {median:.3f} ({low:.3f} to {high:.3f}, {pairs} pairs; against {base:.2f} s)", flush=True)


def quartiles(values: list[float]) -> tuple[float, ...]:
    """25, 50 and 75 %."""
    return tuple(torch.tensor(values).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist())


def texts(args: argparse.Namespace) -> None:
    """A second batch with the same prompts, over the picture tower alone."""
    with untrained.folder() as path:
        reward = untrained.make("clip", path)
    images, prompts = pictures(args.pictures), PROMPTS[: args.pictures]
    reward.prepare(prompts)
    again = partial(reward, images, prompts)
    compare(
        "clip, ViT-L/14, prompts seen before / picture tower alone",
        again,
        partial(reward.embed, images),
        args.pairs,
    )

    def anew() -> None:
        reward.tower.remembered.clear()
        reward(images, prompts)

    compare(
        "clip, ViT-L/14, new prompts / picture tower alone", anew, partial(reward.embed, images), args.pairs
    )


def shared(args: argparse.Namespace) -> None:
    """Three rewards over one checkpoint, over one of them."""
    with untrained.folder() as path:
        clip, logit = (untrained.make("clip", path, score=score) for score in ("cosine", "logit"))
        rewards = {"clip": clip, "logit": logit, "aesthetic": untrained.make("aesthetic", path)}
    images, prompts, calls = pictures(args.pictures), PROMPTS[: args.pictures], 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = clip.tower.model.visual.register_forward_hook(count)
    together = partial(measure, rewards, images, prompts)
    together()
    hook.remove()
    print(f"clip, clip's logit and aesthetic on one ViT-L/14: the picture tower ran {calls} time(s)")
    compare(
        "the three together / clip alone",
        together,
        partial(measure, {"clip": clip}, images, prompts),
        args.pairs,
    )


def batched(args: argparse.Namespace) -> None:
    """Each reward's time picture by picture over its time for the batch."""
    for name in args.names or ["hpsv2", "imagereward"]:
        one_by_one_or_at_once(name, args)
        _open_clip.from_file.cache_clear()  # one network at a time is in memory
        gc.collect()


def one_by_one_or_at_once(name: str, args: argparse.Namespace) -> None:
    """A batch at once, over pictures one by one, each with its prompt read anew, as the official packages do it."""
    with untrained.folder() as path:
        reward = untrained.make(name, path)
    images, prompts = pictures(args.pictures), [PROMPTS[0]] * args.pictures

    def forget() -> None:
        reward.tower.remembered.clear() if name == "hpsv2" else reward.read.cache_clear()

    def at_once() -> None:
        forget()
        reward(images, prompts)

    def one_by_one() -> None:
        for k in range(args.pictures):
            forget()
            reward(images[k : k + 1], prompts[:1])

    with torch.no_grad():
        compare(
            f"{name}, {args.pictures} pictures of a prompt one by one / at once",
            one_by_one,
            at_once,
            args.pairs,
        )
        if name == "hpsv2" and args.official:
            official(at_once, args)


def official(at_once: Callable[[], None], args: argparse.Namespace) -> None:
    """The package's own loop, in its environment, over our batch."""
    command = [args.official, "-c", OFFICIAL, str(args.pictures), str(args.pairs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    theirs = quartiles([float(each) for each in done.stdout.split()])
    ours = quartiles([seconds(at_once) / args.pictures for _ in range(args.pairs)])
    print(f"hpsv2, the official package / at once: {theirs[1] / ours[1]:.3f} ({theirs[1]:.2f} s a picture)")


def table(args: argparse.Namespace) -> None:
    """A line for each reward; each is measured in a process of its own."""
    print("| reward | core s | MB |\n|---|---|---|")
    for name in args.names or [*untrained.LEARNED, *WITHOUT_WEIGHTS]:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            took, mb = process.apply(one_cost, (name,))
        print(f"| {name} | {took:.3g} | {mb:.0f} |", flush=True)


def one_cost(name: str) -> tuple[float, float]:
    """Core seconds and MB of a picture, asked as `diffalign reward check` asks."""
    torch.set_num_threads(1)
    if name in WITHOUT_WEIGHTS:
        reward = registry.reward(name, **WITHOUT_WEIGHTS[name])
    else:
        with untrained.folder() as path:
            reward = untrained.make(name, path)
    _, mb = cost(reward)
    subject = Subject.of(reward)
    images = subject.pictures(BATCH, 256, 256)
    with torch.no_grad():
        return seconds(lambda: subject.ask(images)) / BATCH, mb


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["texts", "shared", "batched", "cost"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--official", metavar="PYTHON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )
    {"texts": texts, "shared": shared, "batched": batched, "cost": table}[args.what](args)


if __name__ == "__main__":
    main()
