"""Policies small enough for closed forms, with the same methods as a real one.

The linear-Gaussian chain: x_{k+1} = A_k x_k + delta_k + sigma_k z, x_0 ~ N(0, I), reward a . x_N.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffalign.grid import Grid
from diffalign.seeds import normal
from diffalign.steps import Gaussian


class Cond:
    """Conditioning that is nothing but a length."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: Tensor) -> Cond:
        return Cond(len(rows))


@dataclass(frozen=True)
class Chain:
    """The step rule of the chain: the denoiser's output is the mean shift delta_k."""

    a: tuple[float, ...]
    sigma: tuple[float, ...]

    def std(self, grid: Grid) -> Tensor:
        return torch.tensor(self.sigma, dtype=torch.float64)

    def __call__(self, output: Tensor, x: Tensor, grid: Grid, i: Tensor) -> Gaussian:
        a = torch.tensor(self.a)[i][:, None]
        return Gaussian(a * x + output, torch.tensor(self.sigma)[i][:, None])

    @property
    def gains(self) -> list[float]:
        """M_k: how much a shift of step k moves the sample."""
        return [float(torch.tensor(self.a[k + 1 :]).prod()) for k in range(len(self.a))]


class ChainPolicy:
    """A policy whose only weights are the shifts delta (N, D); the reference has none."""

    guidance_scale = None
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, steps: int, dim: int) -> None:
        self.delta = nn.Parameter(torch.zeros(steps, dim))
        levels = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        self.grid = Grid(torch.arange(steps), levels, 1 - levels, "epsilon")
        self.latent_shape = (dim,)
        self.denoiser_calls = 0
        self.active = True

    def encode(self, prompts: Sequence[str]) -> Cond:
        return Cond(len(prompts))

    def noise(self, seeds: Sequence[int]) -> Tensor:
        return normal(seeds, self.latent_shape)

    def predict(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        self.denoiser_calls += len(x)
        return self.delta[t.long()] if self.active else torch.zeros_like(x)

    def decode(self, latents: Tensor) -> Tensor:
        return latents

    def differs(self, name: str = "policy") -> bool:
        return bool(self.delta.any())

    def trainable(self) -> list[nn.Parameter]:
        return [self.delta]

    def adapter_state(self) -> dict[str, Tensor]:
        return {"delta": self.delta.detach().clone()}

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            self.delta.copy_(state["delta"])

    def save(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        save_file(self.adapter_state(), folder / "delta.safetensors")

    def load(self, folder: Path) -> None:
        self.load_adapter_state(load_file(folder / "delta.safetensors"))

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        before, self.active = self.active, name != "reference"
        try:
            yield
        finally:
            self.active = before


def train(
    policy: ChainPolicy, rule: Any, algorithm: Any, reward: Any, *, rounds: int, lr: float, **sizes: int
) -> None:
    """The trainer's loop without its files: Adam with a rate falling to zero."""
    from diffalign.run import Batching, Run

    run = Run(policy, rule, reward, ["a prompt"], Batching(micro_batch=10**6, sample_batch=10**6, **sizes))
    adam = torch.optim.Adam([policy.delta], lr)
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.01, rounds)
    for run.round in range(rounds):
        run.update = 0
        batch = algorithm.collect(run)
        for minibatch in algorithm.minibatches(run, batch):
            for loss in algorithm.losses(run, minibatch):
                loss.backward()
            adam.step()
            adam.zero_grad()
            run.update += 1
        schedule.step()
