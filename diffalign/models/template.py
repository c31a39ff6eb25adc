"""The fast way to a pipeline's guided output: call the denoiser with captured arguments, combine what it says.

What a template is made of; `inference.py` finds it. Dimensions: B samples, N steps, m blocks of B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from diffalign.models.conditioning import Batch
from diffalign.models.layout import Layout


class Mismatch(Exception):
    """Why a pipeline has no template, in words."""


class Writer(Protocol):
    """Makes one argument of the denoiser from latents x (B, ...) and timesteps t (B,)."""

    def __call__(self, x: Tensor, t: Tensor, captured: Any) -> Any:
        """The argument; `captured` is what the pipeline passed for this batch."""
        ...


@dataclass(frozen=True)
class Latents:
    """x, repeated `blocks` times, followed by captured channels along `axis`, as a tensor or a list."""

    blocks: int
    dtype: torch.dtype
    axis: int | None = None
    unsqueezed: int | None = None
    listed: bool = False

    def __call__(self, x: Tensor, t: Tensor, captured: Any) -> Any:
        """See Writer."""
        x = x.to(self.dtype)
        x = torch.cat([x] * self.blocks) if self.blocks > 1 else x
        if self.axis is not None:
            rest = captured.narrow(
                self.axis, x.shape[self.axis], captured.shape[self.axis] - x.shape[self.axis]
            )
            x = torch.cat([x, rest], self.axis)
        x = x if self.unsqueezed is None else x.unsqueeze(self.unsqueezed)
        return list(x.unbind()) if self.listed else x

    def __str__(self) -> str:
        extra = "" if self.axis is None else f", captured channels appended along axis {self.axis}"
        return f"latents x {self.blocks}{extra}{', as a list' if self.listed else ''}"


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "t": lambda t: t,
    "t / 1000": lambda t: t / 1000,
    "1 - t / 1000": lambda t: 1 - t / 1000,
    "(1000 - t) / 1000": lambda t: (1000 - t) / 1000,
    "t * 0.001": lambda t: t * 0.001,
}


@dataclass(frozen=True)
class Time:
    """A function of t, computed in `inner` and given in `dtype` to each of `blocks` blocks of samples.

    Where the pipeline gives one timestep for all (`scalar`), t is either () or, for denoisers that
    take one a row as well, (B,).
    """

    form: str
    blocks: int
    inner: torch.dtype
    dtype: torch.dtype
    scalar: bool
    shape: tuple[int, ...] = ()

    @property
    def tail(self) -> tuple[int, ...]:
        """The axes that follow the rows."""
        return () if self.scalar else self.shape[1:]

    def __call__(self, x: Tensor, t: Tensor, captured: Any) -> Tensor:
        """See Writer."""
        value = FORMS[self.form](t.to(self.inner)).to(self.dtype)
        if t.ndim == 0:
            return value.reshape(self.shape)
        value = value.repeat(self.blocks) if self.blocks > 1 else value
        return value.reshape(-1, *[1] * len(self.tail)).expand(-1, *self.tail) if self.tail else value

    def __str__(self) -> str:
        return f"{self.form} ({'one for all samples' if self.scalar else 'one a row'}, {self.dtype})"


class Combine(Protocol):
    """Makes the guided output (B, ...) from the parts (each (B, ...)) that the denoiser gave."""

    def __call__(self, parts: Sequence[Tensor], at: Tensor | None) -> Tensor:
        """The guided output; `at` (B,) are grid indices where the weights differ from step to step."""
        ...


@dataclass(frozen=True)
class Linear:
    """A weighted sum; for two weights that add up to 1: base + scale (guided - base), as pipelines write it."""

    weights: tuple[float, ...]

    def __call__(self, parts: Sequence[Tensor], at: Tensor | None) -> Tensor:
        """See Combine."""
        if len(parts) == 1:
            return parts[0] if self.weights == (1.0,) else parts[0] * self.weights[0]
        if len(parts) == 2 and abs(sum(self.weights) - 1) < 1e-9:
            base, guided = (0, 1) if self.weights[0] < self.weights[1] else (1, 0)
            return parts[base] + self.weights[guided] * (parts[guided] - parts[base])
        return sum(
            (w * p for w, p in zip(self.weights[1:], parts[1:], strict=True)), self.weights[0] * parts[0]
        )

    def __str__(self) -> str:
        return "weights " + ", ".join(f"{w:g}" for w in self.weights)


@dataclass(frozen=True)
class Scheduled:
    """A weighted sum whose weights (N, parts) go with the step."""

    weights: Tensor

    def __call__(self, parts: Sequence[Tensor], at: Tensor | None) -> Tensor:
        """See Combine."""
        assert at is not None
        rows = self.weights[at.cpu()].float().to(parts[0].device)
        rows = rows.reshape(-1, len(parts), *[1] * (parts[0].ndim - 1))
        return torch.stack([rows[:, k] * part for k, part in enumerate(parts)]).sum(0).to(parts[0].dtype)

    def __str__(self) -> str:
        return f"weights that go with the step, {self.weights[0].tolist()} at the first"


@dataclass(frozen=True)
class Rescaled:
    """Guidance brought back, by the share `amount`, to the guided part's standard deviation (Lin et al. 2024)."""

    linear: Linear
    amount: float

    def __call__(self, parts: Sequence[Tensor], at: Tensor | None) -> Tensor:
        """See Combine."""
        out, guided = self.linear(parts, at), parts[_guided(self.linear)]
        dims = list(range(1, out.ndim))
        same = out * (guided.std(dims, keepdim=True) / out.std(dims, keepdim=True))
        return self.amount * same + (1 - self.amount) * out

    def __str__(self) -> str:
        return f"{self.linear}, rescaled by {self.amount:g} to the guided part's standard deviation"


@dataclass(frozen=True)
class Normed:
    """Guidance with the norm of the guided part along the last axis, times `sign`."""

    linear: Linear
    sign: float = 1.0

    def __call__(self, parts: Sequence[Tensor], at: Tensor | None) -> Tensor:
        """See Combine."""
        out, guided = self.linear(parts, at), parts[_guided(self.linear)]
        scaled: Tensor = out * (
            torch.norm(guided, dim=-1, keepdim=True) / torch.norm(out, dim=-1, keepdim=True)
        )
        return self.sign * scaled if self.sign != 1 else scaled

    def __str__(self) -> str:
        return f"{self.linear}, with the norm of the guided part{', negated' if self.sign < 0 else ''}"


def _guided(linear: Linear) -> int:
    return max(range(len(linear.weights)), key=lambda k: linear.weights[k])


@dataclass(frozen=True)
class Template:
    """How a pipeline's denoiser calls follow from (x, t), and its guided output from theirs."""

    layout: Layout
    names: tuple[str, ...]
    writers: dict[int, Writer]
    combine: Combine
    dtype: torch.dtype
    blocks: tuple[int, ...]
    labels: dict[int, str]

    def arguments(self, x: Tensor, t: Tensor, captured: Batch) -> list[Any]:
        """[args, kwargs] of each denoiser call for latents x (B, ...) at t (B,) (or () where all are equal)."""
        values = list(captured.values)
        for n, writer in self.writers.items():
            values[n] = writer(x, t, values[n])
        built: list[Any] = captured.layout.build(values)
        return built

    def output(self, outputs: Sequence[Any], like: Tensor, at: Tensor | None) -> Tensor:
        """The guided output (B, ...) with the shape of the latents."""
        return self.combine([part.to(self.dtype) for part in parts_of(outputs, self.blocks, like)], at)

    @property
    def scheduled(self) -> bool:
        """Whether the guided output needs to know the step."""
        return isinstance(self.combine, Scheduled)

    @property
    def timed(self) -> bool:
        """Whether it follows the timestep; that of a run of one step is a constant, right at that timestep alone."""
        return any(isinstance(writer, Time) for writer in self.writers.values())

    @property
    def vector(self) -> bool:
        """Whether the pipeline itself gives its denoiser one timestep a row."""
        return not any(isinstance(w, Time) and w.scalar for w in self.writers.values())

    def stripped(self, captured: Batch) -> Batch:
        """The captured arguments without those that are written anew in each call."""
        values = list(captured.values)
        for n, writer in self.writers.items():
            if not (isinstance(writer, Latents) and writer.axis is not None):
                values[n] = None
        return Batch(captured.layout, values, captured.size)

    def describe(self) -> list[str]:
        """What was inferred, a line each."""
        lines = [f"{self.labels[n]}: {writer}" for n, writer in self.writers.items()]
        return [*lines, f"output: {len(self.names)} call(s) of {sum(self.blocks)} part(s), {self.combine}"]


def parts_of(outputs: Sequence[Any], blocks: Sequence[int], like: Tensor) -> list[Tensor]:
    """The outputs of all calls, cut into parts (B, ...) of the latents' shape (learned variances dropped)."""
    parts: list[Tensor] = []
    for output, m in zip(outputs, blocks, strict=True):
        tensor = main_output(output)
        if tensor.ndim == like.ndim + 1:
            tensor = tensor.squeeze(2)
        for axis in range(1, like.ndim):
            if tensor.shape[axis] > like.shape[axis]:
                tensor = tensor.narrow(axis, 0, like.shape[axis])
        if tensor.shape != (m * len(like), *like.shape[1:]):
            raise Mismatch(
                f"the denoiser's output {tuple(tensor.shape)} is not as the latents {tuple(like.shape)}"
            )
        parts += tensor.chunk(m)
    return parts


def main_output(output: Any) -> Tensor:
    """The first tensor of what a denoiser returns; a list of samples is stacked."""
    while not isinstance(output, Tensor):
        if isinstance(output, list) and output and isinstance(output[0], Tensor):
            return torch.stack(output)
        output = next(iter(output.values())) if isinstance(output, dict) else output[0]
    return output
