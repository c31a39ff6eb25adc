"""What scoring a picture takes."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch

from diffalign.authoring.subject import Subject
from diffalign.reward import AnyReward

BATCH = 4
RESET = Path("/proc/self/clear_refs")


@torch.no_grad()
def cost(reward: AnyReward, prompts: Sequence[str] | None = None, side: int = 256) -> tuple[float, float]:
    """(seconds, MB) for each of 4 pictures, or videos, of side x side pixels, where the GPU is or on the CPU.

    The MB are those beyond what scoring one picture takes; without a GPU, to the operating system's eye.
    """
    subject, gpu = Subject.of(reward, prompts), torch.cuda.is_available()
    images = subject.pictures(BATCH, side, side).to("cuda" if gpu else "cpu")
    few = images[: 1 if subject.kind == "picture" else 2]
    subject.ask(few)  # what is done once only is done
    more = _peak_mb(lambda: subject.ask(images), gpu) / (BATCH - len(few))
    start = time.perf_counter()
    subject.ask(images)
    return (time.perf_counter() - start) / BATCH, more


def _peak_mb(call: Callable[[], object], gpu: bool) -> float:
    """How far memory rises during a call."""
    if gpu:
        return _peak_on_gpu(call)
    return _peak_on_linux(call) if RESET.exists() else _peak_watched(call)


def _peak_on_gpu(call: Callable[[], object]) -> float:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def _peak_watched(call: Callable[[], object]) -> float:
    """By looking every millisecond."""
    seen: list[int] = [psutil.Process().memory_info().rss]
    done, process = threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.wait(0.001):
            seen.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return (max(seen) - seen[0]) / 1e6


def _peak_on_linux(call: Callable[[], object]) -> float:
    """By the kernel's own mark of how much was resident, which a busy processor cannot make us miss."""
    _give_back_what_lies_free()
    RESET.write_text("5")
    before = _resident("VmRSS")
    call()
    return (_resident("VmHWM") - before) / 1e3


def _give_back_what_lies_free() -> None:
    """Else memory that earlier work left to this process would be filled without being seen to grow."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others keep less
    if trim is not None:
        trim(0)


def _resident(name: str) -> int:
    """kB of a line of /proc/self/status."""
    lines = (RESET.parent / "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])
