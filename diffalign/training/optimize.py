"""One optimizer step: gradients of many losses, reduced once over all processes, clipped, applied.

LoRA training is not wrapped in DDP, so processes may yield different numbers of losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from diffalign.errors import RunError


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW, its schedule over `updates` optimizer steps, clipping (global L2 norm) and averaging."""

    lr: float
    updates: int
    lr_schedule: str = "constant"
    warmup_updates: int = 0
    weight_decay: float = 1e-4
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 1e-8
    max_grad_norm: float = 1.0
    ema_decay: float | None = None


class Optimizer:
    """AdamW over the trained parameters, with gradient reduction, loss scaling in fp16 and an EMA."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], settings: OptimizerSettings, accelerator: Accelerator
    ):
        self.parameters, self.settings, self.accelerator = list(parameters), settings, accelerator
        self.adam = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            betas=(settings.adam_beta1, settings.adam_beta2),
            eps=settings.adam_eps,
            weight_decay=settings.weight_decay,
        )
        warmup = "constant_with_warmup" if settings.lr_schedule == "constant" else settings.lr_schedule
        self.schedule = get_scheduler(
            warmup, self.adam, num_warmup_steps=settings.warmup_updates, num_training_steps=settings.updates
        )
        fp16 = accelerator.mixed_precision == "fp16"
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=fp16)
        decay = settings.ema_decay
        self.ema = EMAModel(self.parameters, decay=decay) if decay else None

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one loss."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self) -> float:
        """Reduce, clip and apply the gradients; the gradient's norm before clipping."""
        self._reduce()
        self.scaler.unscale_(self.adam)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm))
        if norm != norm and not self.scaler.is_enabled():
            raise RunError("the gradient is not a number. Lower lr or use mixed_precision: no, then resume.")
        self.scaler.step(self.adam)
        self.scaler.update()
        self.schedule.step()
        self.adam.zero_grad()
        if self.ema:
            self.ema.step(self.parameters)
        return norm

    def _reduce(self) -> None:
        """Average the gradients over processes in one message; parameters without one count as zero."""
        if self.accelerator.num_processes == 1:
            return
        for p in self.parameters:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        flat = torch.cat([p.grad.flatten() for p in self.parameters if p.grad is not None])
        flat = self.accelerator.reduce(flat, "mean")
        for p, grad in zip(self.parameters, flat.split([p.numel() for p in self.parameters]), strict=True):
            p.grad = grad.view_as(p)

    def scale_lr(self, factor: float) -> None:
        """Multiply the learning rate from now on."""
        self.schedule.base_lrs = [lr * factor for lr in self.schedule.base_lrs]
        for group in self.adam.param_groups:
            group["lr"] *= factor

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self.adam.param_groups[0]["lr"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The EMA's weights in place of the trained ones, where there is an EMA."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        return {
            "adam": self.adam.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.adam.load_state_dict(state["adam"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
            self.ema.to(self.parameters[0].device)  # checkpoints are read to the CPU
