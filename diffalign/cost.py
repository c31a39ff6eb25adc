"""What scoring a picture takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import psutil
import torch

from diffalign.reward import AnyReward
from diffalign.subject import Subject

BATCH = 4


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
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
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
