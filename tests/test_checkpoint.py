"""Checkpoints come back bit for bit, and a kill or a full disk never costs the one before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffalign.errors import DiffalignError, RunError
from diffalign.folders import checkpoint


def state() -> dict:
    layer = torch.nn.Linear(3, 2)
    adam = torch.optim.AdamW(layer.parameters(), lr=1e-3)
    layer(torch.randn(4, 3)).sum().backward()
    adam.step()
    return {
        "adam": adam.state_dict(),
        "half": torch.randn(5).half(),
        "brain": torch.randn(5).bfloat16(),
        "rng": torch.get_rng_state(),
        "view": torch.arange(12.0).reshape(3, 4).T,
        "odd": [
            0.1 + 0.2,
            float("inf"),
            None,
            True,
            2**62,
            "ü/é",
            (1, (2.5,)),
            {1: "a", "1": "b"},
            {"!": "mine"},
        ],
    }


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_round_trip_is_bit_exact_and_keeps_types(tmp_path):
    before = state()
    checkpoint.save(tmp_path / "round-0001", before)
    assert same(before, checkpoint.load(tmp_path / "round-0001"))


def test_shared_tensors_are_saved_each(tmp_path):
    weight = torch.randn(3)
    checkpoint.save(tmp_path / "x", {"a": weight, "b": weight, "c": weight[1:]})
    assert same({"a": weight, "b": weight, "c": weight[1:]}, checkpoint.load(tmp_path / "x"))


def test_keeps_the_newest_and_replaces_the_same_round(tmp_path):
    for number in (1, 2, 3, 3):
        checkpoint.save(tmp_path / f"round-{number:04d}", {"n": number}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["round-0002", "round-0003"]
    assert checkpoint.load(checkpoint.latest(tmp_path)) == {"n": 3}


def test_the_newest_is_the_highest_round_whatever_its_digits(tmp_path):
    for number in (9998, 9999, 10_000, 10_001):
        checkpoint.save(tmp_path / f"round-{number:04d}", {"n": number}, keep=2)
    assert [p.name for p in checkpoint.complete(tmp_path)] == ["round-10000", "round-10001"]
    assert checkpoint.load(checkpoint.latest(tmp_path)) == {"n": 10_001}


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(DiffalignError, match="holds a set at /tracker/seen"):
        checkpoint.save(tmp_path / "x", {"tracker": {"seen": {1}}})
    assert checkpoint.latest(tmp_path) is None


def test_no_or_broken_checkpoint(tmp_path):
    with pytest.raises(DiffalignError, match="no complete checkpoint"):
        checkpoint.load(checkpoint.latest(tmp_path))
    checkpoint.save(tmp_path / "x", {"a": torch.ones(100)})
    file = tmp_path / "x" / checkpoint.TENSORS
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(DiffalignError, match="not a readable checkpoint"):
        checkpoint.load(tmp_path / "x")


FILE_OPERATIONS = ("open", "os.mkdir", "os.rename", "shutil.rmtree", "os.remove", "os.rmdir")


def save_and_die(place: Path, when: int) -> bool:
    """Save a second checkpoint in a process killed at its file operation number `when`; whether it got to the end."""
    if child := os.fork():
        return os.waitpid(child, 0)[1] == 0
    seen = 0

    def kill(event: str, args: tuple) -> None:
        nonlocal seen
        if event in FILE_OPERATIONS and str(place) in str(args):
            seen += 1
            if seen > when:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(kill)
    checkpoint.save(place / "round-0002", {"n": torch.full((1000,), 2.0)}, keep=1)
    os._exit(0)


def test_a_kill_at_any_file_operation_leaves_a_complete_checkpoint(tmp_path):
    found, done, when = [], False, 0
    while not done:
        place = tmp_path / str(when)
        checkpoint.save(place / "round-0001", {"n": torch.full((1000,), 1.0)}, keep=1)
        done = save_and_die(place, when)
        found.append(float(checkpoint.load(checkpoint.latest(place))["n"].unique()))
        checkpoint.save(place / "round-0003", {"n": 3}, keep=1)
        assert [p.name for p in place.iterdir() if not p.name.startswith(".")] == ["round-0003"]
        when += 1
    assert when > 5
    assert found == sorted(found)
    assert set(found) == {1.0, 2.0}


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system needs root to mount it")
def test_a_full_disk_is_a_run_error_and_keeps_the_previous(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("this machine does not let us mount a small file system")
    try:
        checkpoint.save(disk / "round-0001", {"n": torch.ones(20_000)})
        with pytest.raises(RunError, match="free some space"):
            checkpoint.save(disk / "round-0002", {"n": torch.ones(60_000)}, keep=1)
        assert [p.name for p in Path(disk).iterdir()] == ["round-0001"]
        assert torch.equal(checkpoint.load(checkpoint.latest(disk))["n"], torch.ones(20_000))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
