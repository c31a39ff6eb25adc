"""Killed in any phase, interrupted, out of disk: a resumed run ends with an undisturbed one's weights."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SMALL = [
    "emoji-ddpo", "steps=4", "rounds=6", "prompts_per_round=2", "images_per_prompt=2", "updates_per_round=1",
    "heldout_limit=4", "eval_every=3", "checkpoint_every=1", "trackers=[]",
]  # fmt: skip
KILL_IN_SAVE = """
import os, signal, sys
from diffalign.folders import checkpoint
original, left = checkpoint.save_file, [int(os.environ["SAVES_BEFORE_KILL"])]
def save_file(tensors, path, *rest, **more):
    original(tensors, path, *rest, **more)
    left[0] -= 1
    if left[0] < 0:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = save_file
sys.argv = ["diffalign", *sys.argv[1:]]
from diffalign.__main__ import main
main()
"""


def command(out: Path, *, resume: bool = False) -> list[str]:
    return ["train", *SMALL, "--resume" if resume else "--out", str(out)]


def start(out: Path, *, resume: bool, saves: int | None = None) -> subprocess.Popen:
    program = ["-m", "diffalign"] if saves is None else ["-c", KILL_IN_SAVE]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SAVES_BEFORE_KILL": str(saves)}
    return subprocess.Popen(
        [sys.executable, *program, *command(out, resume=resume)], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def weights(out: Path) -> dict[str, torch.Tensor]:
    (file,) = (out / "lora").glob("*.safetensors")
    return load_file(file)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def started(out: Path) -> bool:
    return any((out / "checkpoints").glob("round-*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    begin = time.monotonic()
    finish(start(out, resume=False))
    return weights(out), time.monotonic() - begin, (out / "metrics.jsonl").read_text()


def test_killed_at_ten_moments(undisturbed, tmp_path):
    """Seven kills at random times, three in the middle of writing a checkpoint, in one run."""
    expected, seconds, metrics = undisturbed
    out, rng = tmp_path / "run", random.Random(0)
    for kill in range(10):
        saves = rng.randrange(2) if kill % 3 == 2 else None
        process = start(out, resume=started(out), saves=saves)
        if saves is None:
            time.sleep(rng.uniform(0.3, 0.9) * seconds)
            process.send_signal(signal.SIGKILL)
        process.wait(timeout=300)
        if not started(out):
            subprocess.run(["rm", "-rf", str(out)], check=True)
    finish(start(out, resume=started(out)))
    assert same(weights(out), expected)
    deterministic = ("round", "reward/total/mean", "kl", "grad_norm")
    for ours, theirs in zip(
        (out / "metrics.jsonl").read_text().splitlines(), metrics.splitlines(), strict=True
    ):
        assert [json.loads(ours)[k] for k in deterministic] == [json.loads(theirs)[k] for k in deterministic]


def test_interrupted_once_it_saves_and_says_how_to_resume(undisturbed, tmp_path):
    out = tmp_path / "run"
    process = start(out, resume=False)
    while not started(out):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "--resume" in output
    finish(start(out, resume=True))
    assert same(weights(out), undisturbed[0])


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "run"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=14m", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine does not let us mount a small file system: {error}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_loses_nothing(undisturbed, small_disk):
    process = start(small_disk, resume=False)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 3, output
    assert "Traceback" not in output
    assert "space" in output
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    finish(start(small_disk, resume=started(small_disk)))
    assert same(weights(small_disk), undisturbed[0])


def test_a_checkpoint_of_another_config_is_refused(undisturbed, tmp_path):
    out = tmp_path / "run"
    finish(start(out, resume=False))
    done = subprocess.run(
        [sys.executable, "-m", "diffalign", *command(out, resume=True), "lr=0.5"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "lr" in done.stderr
    assert "another config" in done.stderr
