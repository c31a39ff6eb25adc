"""A run whose reward server is killed stops with exit code 3; resumed, it ends as an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import served
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SMALL = [
    "emoji-ddpo", "steps=3", "rounds=5", "prompts_per_round=2", "images_per_prompt=2", "updates_per_round=1",
    "heldout_limit=2", "eval_every=4", "checkpoint_every=100", "trackers=[]", "sample_batch=2",
]  # fmt: skip


def train(url: str, out: Path, *, resume: bool = False) -> subprocess.Popen:
    reward = f"reward={{url: {url}, timeout: 20, tries: 3}}"
    return subprocess.Popen(
        [sys.executable, "-m", "diffalign", "train", *SMALL, reward, "--resume" if resume else "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen, code: int = 0) -> str:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output
    return output


def rows(out: Path) -> list[dict]:
    file = out / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def weights(out: Path) -> dict[str, torch.Tensor]:
    (file,) = (out / "lora").glob("*.safetensors")
    return load_file(file)


def test_killed_resumed_and_the_same_to_the_bit(tmp_path):
    name, whole, parts = served.write(tmp_path) + ":Bright", tmp_path / "whole", tmp_path / "parts"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with served.serving(name, "--port", port) as (url, server):
        finish(train(url, whole))
        disturbed = train(url, parts)
        assert served.until(lambda: len(rows(parts)) >= 2 or disturbed.poll() is not None, 600)
        server.send_signal(signal.SIGKILL)
        output = finish(disturbed, 3)
    assert url in output
    assert "asked 3 time(s)" in output
    assert "Traceback" not in output
    done = len(rows(parts))
    assert 2 <= done < 5
    assert [path.name for path in (parts / "checkpoints").iterdir()] == [f"round-{done:04d}"]
    with served.serving(name, "--port", port):
        finish(train(url, parts, resume=True))
    assert all(torch.equal(values, weights(parts)[key]) for key, values in weights(whole).items())
    for ours, theirs in zip(rows(parts), rows(whole), strict=True):
        assert all(
            ours[k] == theirs[k] for k in ("round", "reward/total/mean", "kl", "grad_norm", "reward_calls")
        )
