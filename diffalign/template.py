"""The fast way to a pipeline's guided output: call the denoiser with captured arguments, combine what it says.

Nothing here is guessed: a template is inferred from a trace of all steps of the grid and must
explain every argument and every output of it. Dimensions: B samples, N steps, m blocks of B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from diffalign.conditioning import Batch, Layout, Slot, leaves_of


@dataclass(frozen=True)
class Moment:
    """One step of a trace: what the denoiser was asked and said, and what the pipeline made of it.

    calls: (denoiser, [args, kwargs], output) of each call; output (B, ...) is what went to
    `scheduler.step` beside the timestep and the sample x (B, ...).
    """

    calls: list[tuple[str, list[Any], Any]]
    output: Tensor
    timestep: Tensor
    sample: Tensor


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
        first = parts[0]
        rows = (
            self.weights[at.cpu()]
            .to(first.device, first.dtype)
            .reshape(-1, len(parts), *[1] * (first.ndim - 1))
        )
        return sum((rows[:, k] * part for k, part in enumerate(parts[1:], 1)), rows[:, 0] * first)

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
                f"the denoiser's output {tuple(tensor.shape)} has not the latents' form {tuple(like.shape)}"
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


def infer(trace: Sequence[Moment], layout: Layout, numbers: Sequence[float]) -> Template:
    """The template that explains a trace; `numbers` are the guidance scales it may contain. Raises Mismatch."""
    first = trace[0]
    names = tuple(name for name, _, _ in first.calls)
    for k, moment in enumerate(trace):
        if tuple(name for name, _, _ in moment.calls) != names:
            raise Mismatch(f"step {k} calls {[c[0] for c in moment.calls]}, the first step {list(names)}")
    columns = list(zip(*(_leaves(layout, moment, k) for k, moment in enumerate(trace)), strict=True))
    labels = _labels(layout)
    blocks = tuple(_blocks(output, first.sample) for _, _, output in first.calls)
    moving = [n for n, column in enumerate(columns) if not _static(column)]
    writers = {n: _writer(columns[n], trace, labels[n], blocks[int(labels[n].split(".")[0])]) for n in moving}
    if not any(isinstance(writer, Latents) for writer in writers.values()):
        raise Mismatch("no argument of the denoiser holds the latents as they are")
    parts = [parts_of([output for _, _, output in moment.calls], blocks, moment.sample) for moment in trace]
    # Pipelines combine the parts in the denoiser's dtype, or after casting them to the output's.
    for dtype in dict.fromkeys([first.output.dtype, parts[0][0].dtype]):
        if combine := _combine(trace, [[part.to(dtype) for part in p] for p in parts], numbers):
            return Template(layout, names, writers, combine, dtype, blocks, labels)
    raise Mismatch("how the guided output follows from the denoiser's is none of the rules known here")


def _leaves(layout: Layout, moment: Moment, k: int) -> list[Any]:
    try:
        return layout.flatten([arguments for _, arguments, _ in moment.calls])
    except (KeyError, ValueError, TypeError, IndexError):
        raise Mismatch(f"the denoiser's arguments change their form at step {k}") from None


def _labels(layout: Layout) -> dict[int, str]:
    paths = [(leaf, path) for path, leaf in leaves_of(layout.skeleton) if isinstance(leaf, Slot)]
    return {int(n): ".".join(str(p) for p in (path[0], *path[2:])) for n, path in paths}


def _static(column: Sequence[Any]) -> bool:
    return all(same(column[0], other) for other in column[1:])


def same(a: Any, b: Any) -> bool:
    """Whether two arguments are equal, bit for bit."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b)


def _writer(column: Sequence[Any], trace: Sequence[Moment], label: str, blocks: int) -> Writer:
    sample = trace[0].sample
    candidates: list[Writer] = [*_latents(column, sample), *_times(column, sample, blocks)]
    for candidate in candidates:
        scalar = isinstance(candidate, Time) and candidate.scalar
        times = [
            m.timestep.reshape(()) if scalar else m.timestep.reshape(1).expand(len(m.sample)) for m in trace
        ]
        made = (candidate(m.sample, t, v) for m, t, v in zip(trace, times, column, strict=True))
        if all(same(a, b) for a, b in zip(made, column, strict=True)):
            return candidate
    raise Mismatch(
        f"argument {label!r} changes from step to step, and follows neither from the latents nor from t"
    )


def _latents(column: Sequence[Any], x: Tensor) -> list[Latents]:
    leaf = column[0]
    if isinstance(leaf, list) and leaf and isinstance(leaf[0], Tensor):
        rank = leaf[0].ndim
        if rank not in (x.ndim - 1, x.ndim) or len(leaf) % len(x):
            return []
        dims = [None] if rank == x.ndim - 1 else list(range(1, x.ndim + 1))
        return [Latents(len(leaf) // len(x), leaf[0].dtype, unsqueezed=d, listed=True) for d in dims]
    if (
        not isinstance(leaf, Tensor)
        or not leaf.is_floating_point()
        or leaf.ndim < x.ndim
        or len(leaf) % len(x)
    ):
        return []
    m = len(leaf) // len(x)
    if leaf.ndim == x.ndim + 1:
        return [Latents(m, leaf.dtype, unsqueezed=d) for d in range(1, x.ndim + 1) if leaf.shape[d] == 1]
    longer = [d for d in range(1, x.ndim) if leaf.shape[d] > x.shape[d]]
    return [Latents(m, leaf.dtype, longer[0] if longer else None)] if len(longer) < 2 else []


def _times(column: Sequence[Any], x: Tensor, blocks: int) -> list[Time]:
    leaf = column[0]
    if not isinstance(leaf, Tensor) or (leaf.ndim and leaf.shape[0] != 1 and leaf.shape[0] % len(x)):
        return []
    scalar = leaf.ndim == 0 or leaf.shape[0] % len(x) != 0
    m = blocks if scalar else leaf.shape[0] // len(x)
    inner = dict.fromkeys([leaf.dtype, torch.float32])
    return [Time(form, m, kind, leaf.dtype, scalar, tuple(leaf.shape)) for kind in inner for form in FORMS]


def _blocks(output: Any, sample: Tensor) -> int:
    rows = len(main_output(output))
    if rows % len(sample):
        raise Mismatch(f"the denoiser gives {rows} rows for {len(sample)} samples")
    return rows // len(sample)


def _combine(
    trace: Sequence[Moment], parts: Sequence[list[Tensor]], numbers: Sequence[float]
) -> Combine | None:
    fitted = [_weights(p, m.output, numbers) for p, m in zip(parts, trace, strict=True)]
    candidates: list[Combine] = []
    if all(torch.allclose(w, fitted[0], atol=1e-6) for w in fitted):
        candidates = [Linear(tuple(fitted[0].tolist()))]
    else:
        candidates = [Scheduled(torch.stack(fitted))]
    if len(parts[0]) == 2:
        linear = [Linear(w) for g in numbers for w in ((1 - g, g), (g, 1 - g))]
        candidates += [Normed(one, sign) for one in linear for sign in (1.0, -1.0)]
        candidates += [Rescaled(one, amount) for one in linear for amount in numbers if 0 < amount <= 1]
    steps = torch.arange(len(trace))
    for combine in candidates:
        guesses = (combine(p, k.expand(len(p[0]))) for p, k in zip(parts, steps, strict=True))
        if all(close(guess, m.output) for guess, m in zip(guesses, trace, strict=True)):
            return combine
    return None


def _weights(parts: Sequence[Tensor], output: Tensor, numbers: Sequence[float]) -> Tensor:
    """Least squares, each weight snapped to a number that the call contains (or 1 minus it) if it is that one."""
    columns = torch.stack([part.detach().double().flatten() for part in parts], 1)
    if torch.linalg.matrix_rank(columns) < columns.shape[1]:
        raise Mismatch("the parts of the denoiser's output cannot be told apart")
    found = torch.linalg.lstsq(columns, output.detach().double().flatten()[:, None]).solution.flatten()
    exact = torch.tensor(
        [0.0, 1.0, -1.0, *(v for g in numbers for v in (g, 1 - g, 1 + g, -g))], dtype=torch.float64
    )
    distance = (found.cpu()[:, None] - exact).abs()
    tolerance = 1e-5 if output.dtype == torch.float32 else 2e-2
    return torch.where(distance.amin(1) < tolerance, exact[distance.argmin(1)], found.cpu())


def close(a: Tensor, b: Tensor) -> bool:
    """Equality up to the rounding of b's dtype."""
    eps = 32 * torch.finfo(b.dtype).eps
    return a.shape == b.shape and bool(
        (a.double() - b.double()).abs().max() <= eps * (1 + b.double().abs().max())
    )
