"""One resumable training loop for every network of the recipe."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Loss = Callable[[torch.Generator], Tensor]


@dataclass
class Schedule:
    """Length and pace of one training: steps of the optimizer, peak rate, decay of the average."""

    steps: int
    rate: float
    warmup: int = 100
    cooldown: float = 0.4
    decay: float = 0.999
    weight_decay: float = 0.01
    save_every: int = 250
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then constant, then linear to zero over the last share `cooldown` of the steps.

        Until the cool-down begins, a checkpoint does not depend on `steps`: a run can be made longer.
        """
        left = (self.steps - step) / (self.cooldown * self.steps)
        return self.rate * min(1.0, (step + 1) / self.warmup, left)


def fit(model: nn.Module, loss: Loss, schedule: Schedule, folder: Path) -> nn.Module:
    """Minimises `loss` and leaves the exponential moving average of the trained weights in `model`.

    Continues from `folder/state.safetensors` where there is one. Every step draws from a generator
    seeded by (seed, step), so an interrupted run ends with the weights of an uninterrupted one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        trained(model).values(),
        lr=schedule.rate,
        betas=(0.9, 0.99),
        weight_decay=schedule.weight_decay,
        fused=True,
    )
    average = {name: value.detach().clone() for name, value in trained(model).items()}
    first = _load(folder / "state.safetensors", model, optimizer, average)
    log = _Log(folder / "log.txt", first)
    for step in range(first, schedule.steps):
        log(step, _update(model, loss, optimizer, schedule, step))
        _blend(average, model, min(schedule.decay, (1 + step) / (10 + step)))
        if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
            _save(folder / "state.safetensors", model, optimizer, average, step + 1)
    model.load_state_dict(average, strict=False)
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _update(
    model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer, schedule: Schedule, step: int
) -> float:
    """One optimizer step; the loss it started from."""
    optimizer.param_groups[0]["lr"] = schedule.rate_at(step)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(torch.Generator().manual_seed(schedule.seed * 1_000_003 + step))
    torch.autograd.backward(value)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(value.detach())


@torch.no_grad()
def _blend(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """average ← decay·average + (1 − decay)·weights."""
    weights = trained(model)
    torch._foreach_lerp_(list(average.values()), [weights[name].detach() for name in average], 1 - decay)


def _save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], step: int
) -> None:
    """Writes weights, average, moments and the step count, then renames over the last checkpoint."""
    state = {f"average/{name}": value for name, value in average.items()}
    state |= {f"buffer/{name}": value for name, value in model.named_buffers()}
    for name, value in trained(model).items():
        moments = optimizer.state[value]
        state |= {
            f"weights/{name}": value.detach(),
            f"first/{name}": moments["exp_avg"],
            f"second/{name}": moments["exp_avg_sq"],
        }
    save_file(state | {"step": torch.tensor(step)}, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def _load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> int:
    """Restores what `_save` wrote; the number of steps done, 0 without a checkpoint."""
    if not path.exists():
        return 0
    state = load_file(path)
    for name, value in trained(model).items():
        value.data.copy_(state[f"weights/{name}"])
        average[name].copy_(state[f"average/{name}"])
        optimizer.state[value] = {
            "step": state["step"].float(),
            "exp_avg": state[f"first/{name}"].clone(),
            "exp_avg_sq": state[f"second/{name}"].clone(),
        }
    for name, buffer in model.named_buffers():
        buffer.copy_(state[f"buffer/{name}"])
    return int(state["step"])


class _Log:
    """Appends the mean loss and the seconds per step to a text file, every 50 steps."""

    def __init__(self, path: Path, first: int) -> None:
        self.path, self.total, self.count, self.began = path, 0.0, 0, time.time()

    def __call__(self, step: int, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1
        if (step + 1) % 50 == 0:
            pace = (time.time() - self.began) / self.count
            with self.path.open("a") as file:
                file.write(f"{step + 1} loss {self.total / self.count:.5f} seconds/step {pace:.3f}\n")
            self.total, self.count, self.began = 0.0, 0, time.time()
