"""What a round logs: means, maxima and seconds, collected anywhere and reduced once over all processes."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from accelerate.utils import gather_object
from torch import Tensor

How = Literal["mean", "max", "sum"]


class Metrics:
    """Accumulates (sum, count, max) under names until `row` reads and clears them."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[How, float, int, float]] = {}

    def add(self, name: str, values: Tensor | float, how: How = "mean") -> None:
        """Take in one value or a tensor of them."""
        known = values.detach().cpu() if isinstance(values, Tensor) else values
        flat = torch.as_tensor(known, dtype=torch.float64).flatten()
        _, total, count, top = self._seen.get(name, (how, 0.0, 0, -float("inf")))
        self._seen[name] = (how, total + float(flat.sum()), count + len(flat), max(top, float(flat.max())))

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds that the block takes to `seconds/phase`."""
        start = time.perf_counter()
        yield
        self.add(f"seconds/{phase}", time.perf_counter() - start, "sum")

    def row(self) -> dict[str, float]:
        """The reduced values over all processes (seconds: the slowest one's sum), and start anew."""
        everywhere: list[dict[str, tuple[How, float, int, float]]] = gather_object([self._seen])
        self._seen = {}
        names = dict.fromkeys(name for seen in everywhere for name in seen)
        return {name: _reduce([seen[name] for seen in everywhere if name in seen], name) for name in names}


def _reduce(parts: list[tuple[How, float, int, float]], name: str) -> float:
    if parts[0][0] == "max":
        return max(top for *_, top in parts)
    totals = [total for _, total, _, _ in parts]
    if parts[0][0] == "sum":
        return max(totals) if name.startswith("seconds/") else sum(totals)
    return sum(totals) / sum(count for _, _, count, _ in parts)


def describe(name: str, values: Tensor) -> dict[str, float]:
    """Mean, standard deviation and the 10 %, 50 % and 90 % quantiles of a reward (B,)."""
    values = values.detach().cpu().double()
    q10, q50, q90 = values.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    spread = float(values.std(correction=0))
    return {
        f"{name}/mean": float(values.mean()),
        f"{name}/std": spread,
        f"{name}/q10": q10,
        f"{name}/q50": q50,
        f"{name}/q90": q90,
    }


def forget_peak_memory() -> None:
    """Let `peak_memory_mb` count from now on, where that can be done: on CUDA."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_mb() -> float:
    """Peak memory of this process in MB: on CUDA since `forget_peak_memory`, else resident, from its start."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
