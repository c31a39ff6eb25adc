"""Real reward servers for tests: ours, and one that misbehaves as it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

REWARD = '''
import os, sys, time
import torch
from diffalign.reward import DiffalignError, Scores

class Bright:
    """Mean brightness; what else it does is in the prompts."""

    video = True

    def __init__(self, scale: float = 1.0):
        self.scale = scale

    def __call__(self, images, prompts, **metadata):
        for prompt in prompts:
            what, _, rest = prompt.partition(" ")
            if what == "until":
                while not os.path.exists(rest):
                    time.sleep(0.01)
            elif what == "raise":
                raise ValueError("no score for this one")
            elif what == "refuse":
                raise DiffalignError("no words to look for")
            elif what == "exit":
                sys.exit(3)
        value = images.flatten(1).mean(1) * self.scale
        if "nan" in prompts:
            value = value * float("nan")
        odd = images.flatten(1).std(1).double() / 3
        return Scores(value, {"odd": odd, "batch": torch.full_like(value, len(prompts))}, odd.sqrt())

class Pictures(Bright):
    video = False

class Pid:
    def __call__(self, images, prompts, **metadata):
        return torch.full((len(prompts),), float(os.getpid()))
'''


def write(folder: Path) -> str:
    """The rewards above as a file; its name as configs take it."""
    file = folder / "served_rewards.py"
    file.write_text(REWARD)
    return str(file)


def pictures(n: int, height: int = 16, width: int = 12, seed: int = 0) -> torch.Tensor:
    """Pictures of 8 bits, as floats."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), generator=g) / 255


@contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`diffalign reward serve` in a process of its own: (address, process); killed at the end."""
    command = [sys.executable, "-m", "diffalign", "reward", "serve", *arguments]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert " at http://" in line, f"{command} did not start: {line}"
        yield line.split(" at ")[1].split()[0].replace("0.0.0.0", "127.0.0.1"), process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def until(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether something becomes true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def gone(pid: int) -> bool:
    """Whether a process has ended (one that nobody has waited for has, too)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
