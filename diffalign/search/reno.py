"""ReNO: gradient ascent on the initial noise of a generator of one or few steps.

Eyring et al. 2024 (arXiv 2406.04312), with many prompts side by side: each has a norm, a clipped gradient,
an optimizer and a best sample of its own. Dimensions: B prompts, D numbers in one latent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from diffalign.bounds import Above0, Count, Decay, NotNegative, Positive
from diffalign.errors import DiffalignError
from diffalign.policy import Policy
from diffalign.recompute import recomputing
from diffalign.reward import capability
from diffalign.search import Found, Search, Task
from diffalign.steps import DDIM, ODE, Consistency, StepRule


@dataclass
class ReNO(Search):
    """Maximises reward - reg_weight * (|z|^2 / 2 - (D - 1) ln |z|) over noise z; the reward alone selects.

    iterations: evaluations of the generator and the reward; between them the noise moves.
    optimizer: "sgd", "adam" (eps 0.01) or "lbfgs" (history of 3, no line search: one evaluation a step).
    lr: step size; with "sgd" the noise moves by at most lr * clip / (1 - momentum) an iteration.
    momentum, nesterov: of "sgd".
    clip: largest L2 norm of a prompt's gradient, the regulariser's included; None: any.
    reg_weight: of minus the log-density of a chi-distributed norm, least at |z| = sqrt(D - 1).
    patience: a prompt ends after this many evaluations without a better reward; 0: never early.
    checkpoint: compute activations of denoiser and VAE again in the backward: less memory, more time.
    """

    plain: ClassVar[Mapping[str, Any]] = {"steps": 1}

    iterations: Positive = 50
    optimizer: Literal["sgd", "adam", "lbfgs"] = "sgd"
    lr: Above0 = 5.0
    momentum: Decay = 0.9
    nesterov: bool = True
    clip: Above0 | None = 0.1
    reg_weight: NotNegative = 0.01
    patience: Count = 0
    checkpoint: bool = False

    def default_rule(self, policy: Policy) -> StepRule:
        """One step ends at the clean sample; several are Euler's for flows and ancestral ones for diffusion."""
        if policy.grid.flow:
            return ODE()
        return Consistency() if policy.grid.steps == 1 else DDIM()

    def check(self, task: Task) -> None:
        """Every reward has a gradient."""
        flat = [name for name, one in task.reward.rewards.items() if not capability(one, "differentiable")]
        if flat:
            raise DiffalignError(
                f"ReNO follows gradients, and these rewards declare none: {', '.join(map(repr, flat))} (one that has a "
                "gradient says so by `differentiable = True`). Take differentiable rewards, or a search that needs no "
                "gradient, such as best_of_n."
            )

    def search(self, task: Task) -> Found:
        """See Search."""
        with recomputing(task.policy) if self.checkpoint else nullcontext():
            for owner in task.chunks(len(task.prompts)):
                self._ascend(task, owner)
        return task.found()

    def _ascend(self, task: Task, owner: Tensor) -> None:
        """All iterations of some prompts; the last one has no step after it, and needs no gradient."""
        first = torch.zeros_like(owner)
        starts = zip(
            owner.tolist(), _standard(task, owner, first), task.seeds("steps", owner, first), strict=True
        )
        ascents = [Ascent(prompt, z, seed, self) for prompt, z, seed in starts]
        for k in range(1, self.iterations + 1):
            with torch.set_grad_enabled(k < self.iterations):
                self._evaluate(task, ascents)
            ascents = [a for a in ascents if not self.patience or a.stale < self.patience]
            if not ascents or k == self.iterations:
                return
            self._step(task, ascents, k)

    def _evaluate(self, task: Task, ascents: Sequence[Ascent]) -> None:
        """Find out where every prompt stands, and offer its sample."""
        owner, z = _owners(ascents), torch.stack([ascent.z for ascent in ascents])
        noise = (z * task.policy.grid.initial).to(task.policy.dtype)
        latents = task.denoise(noise, owner, [ascent.seed for ascent in ascents])
        scores = task.scores(latents, owner)
        task.offer(owner, latents, noise, {name: values.detach().cpu() for name, values in scores.items()})
        losses = self.reg_weight * regulariser(z) - scores["total"]
        for ascent, loss in zip(ascents, losses, strict=True):
            ascent.hear(loss, task.best.total(ascent.owner))

    def _step(self, task: Task, ascents: Sequence[Ascent], k: int) -> None:
        """Move every noise; where the reward or its gradient is not finite, begin again from fresh noise.

        The sum over prompts has each prompt's own gradient, because no sample of a batch sees another.
        """
        total = torch.stack([ascent.loss for ascent in ascents]).sum()
        gradients = torch.autograd.grad(total, [ascent.z for ascent in ascents])
        task.ledger.add("gradients", _owners(ascents))
        for ascent, gradient in zip(ascents, gradients, strict=True):
            if bool(ascent.loss.isfinite() & gradient.isfinite().all()):
                ascent.move(gradient)
            else:
                owner = torch.tensor([ascent.owner])
                ascent.begin(_standard(task, owner, torch.full_like(owner, k))[0])


class Ascent:
    """One prompt on its way: its noise z (...), float32, its optimizer, and how long nothing got better."""

    def __init__(self, owner: int, z: Tensor, seed: int, method: ReNO) -> None:
        self.owner, self.seed, self.method = owner, seed, method
        self.best, self.stale = -torch.inf, 0
        self.begin(z)

    def begin(self, z: Tensor) -> None:
        """Start from this noise."""
        self.z = z.detach().clone().requires_grad_()
        self.optimizer = optimizer(self.method, self.z)

    def hear(self, loss: Tensor, best: float) -> None:
        """Take note of the loss () of now and the best reward so far."""
        self.loss = loss
        self.stale = 0 if best > self.best else self.stale + 1
        self.best = best

    def move(self, gradient: Tensor) -> None:
        """Descend along a gradient (...) of the loss."""
        self.z.grad = gradient
        if self.method.clip is not None:
            clip_grad_norm_([self.z], self.method.clip)
        self.optimizer.step(lambda: 0.0)  # L-BFGS asks for the loss, and uses it in line searches only


def regulariser(z: Tensor) -> Tensor:
    """|z|^2 / 2 - (D - 1) ln |z| of every sample of z (B, ...): (B,), minus a chi's log-density."""
    norm = torch.linalg.vector_norm(z.flatten(1), dim=1)
    density: Tensor = norm.square() / 2 - (z[0].numel() - 1) * norm.log()
    return density


def optimizer(method: ReNO, z: Tensor) -> Any:
    """torch's optimizer of one noise."""
    match method.optimizer:
        case "sgd":
            nesterov = method.nesterov and method.momentum > 0
            return torch.optim.SGD([z], method.lr, momentum=method.momentum, nesterov=nesterov)
        case "adam":
            return torch.optim.Adam([z], method.lr, eps=1e-2)
        case "lbfgs":
            return torch.optim.LBFGS([z], method.lr, max_iter=1, history_size=3)


def _owners(ascents: Sequence[Ascent]) -> Tensor:
    return torch.tensor([ascent.owner for ascent in ascents])


def _standard(task: Task, owner: Tensor, member: Tensor) -> Tensor:
    """Standard normal noise (B, ...), float32."""
    return task.noise(owner, member).float() / task.policy.grid.initial
