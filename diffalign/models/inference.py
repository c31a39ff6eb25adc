"""Finding the template of a pipeline, from one run of all its steps with the denoiser stubbed.

Nothing is guessed: a template must reproduce, at every step of the grid, each argument of the
denoiser bit for bit, and the guided output up to rounding. One step at a time is looked at and
forgotten, so memory does not grow with the steps. Dimensions: B samples, N steps, m blocks of B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffalign.models.layout import Layout, Slot, leaves_of
from diffalign.models.template import (
    FORMS,
    Combine,
    Latents,
    Linear,
    Mismatch,
    Normed,
    Rescaled,
    Scheduled,
    Template,
    Time,
    Writer,
    main_output,
    parts_of,
)

ENOUGH = 65536
"""Numbers of one output that are enough to find a few weights."""


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


class Inference:
    """The template that explains all moments added so far; raises Mismatch as soon as there is none.

    `numbers` are the guidance scales that the rules may contain.
    """

    def __init__(self, layout: Layout, numbers: Sequence[float]) -> None:
        self.layout, self.numbers, self.step = layout, numbers, 0
        self.labels = _labels(layout)

    def add(self, moment: Moment) -> None:
        """Look at one more step."""
        leaves = self._leaves(moment)
        if self.step == 0:
            self._begin(moment, leaves)
        if tuple(name for name, _, _ in moment.calls) != self.names:
            called = [name for name, _, _ in moment.calls]
            raise Mismatch(f"step {self.step} calls {called}, the first step {list(self.names)}")
        for n, leaf in enumerate(leaves):
            self._explain(n, leaf, moment)
        outputs = [output for _, _, output in moment.calls]
        parts = parts_of(outputs, self.blocks, moment.sample)
        for fit in self.fits:
            fit.add(parts, moment.output)
        self.step += 1

    def template(self) -> Template:
        """What explains every step."""
        writers = {n: w[0] for n, w in enumerate(self.writers) if n not in self.constant}
        if not any(isinstance(writer, Latents) for writer in writers.values()):
            raise Mismatch("no argument of the denoiser holds the latents as they are")
        for fit in self.fits:
            if combine := fit.result():
                return Template(
                    self.layout, self.names, writers, combine, fit.dtype, self.blocks, self.labels
                )
        raise Mismatch("how the guided output follows from the denoiser's is none of the rules known here")

    def _begin(self, moment: Moment, leaves: list[Any]) -> None:
        self.names = tuple(name for name, _, _ in moment.calls)
        self.blocks = tuple(_blocks(output, moment.sample) for _, _, output in moment.calls)
        self.constant = dict(enumerate(leaves))
        calls = [int(self.labels[n].split(".")[0]) for n in range(len(leaves))]
        self.writers = [
            _candidates(leaf, moment.sample, self.blocks[call])
            for leaf, call in zip(leaves, calls, strict=True)
        ]
        # Pipelines combine the parts in the denoiser's dtype, or after casting them to the output's.
        kinds = dict.fromkeys([moment.output.dtype, main_output(moment.calls[0][2]).dtype])
        self.fits = [Fit(dtype, self.numbers) for dtype in kinds]

    def _leaves(self, moment: Moment) -> list[Any]:
        try:
            return self.layout.flatten([arguments for _, arguments, _ in moment.calls])
        except (KeyError, ValueError, TypeError, IndexError):
            raise Mismatch(f"the denoiser's arguments change their form at step {self.step}") from None

    def _explain(self, n: int, leaf: Any, moment: Moment) -> None:
        """Keep what still explains argument n: that it is constant, or one of its writers."""
        if n in self.constant and not same(self.constant[n], leaf):
            del self.constant[n]
        self.writers[n] = [w for w in self.writers[n] if same(w(moment.sample, _time(w, moment), leaf), leaf)]
        if n not in self.constant and not self.writers[n]:
            raise Mismatch(
                f"argument {self.labels[n]!r} changes from step to step, and follows neither from the latents nor "
                "from t"
            )


class Fit:
    """The rules that still explain how the guided output follows from parts in this dtype, with their worst error."""

    def __init__(self, dtype: torch.dtype, numbers: Sequence[float]) -> None:
        self.dtype, self.numbers = dtype, numbers
        self.weights: list[Tensor] | None = []
        self.error = 0.0
        linear = [Linear(w) for g in numbers for w in ((1 - g, g), (g, 1 - g))]
        rules: list[Combine] = [Normed(one, sign) for one in linear for sign in (1.0, -1.0)]
        rules += [Rescaled(one, amount) for one in linear for amount in numbers if 0 < amount <= 1]
        self.rules = [(rule, 0.0) for rule in rules]

    def add(self, parts: Sequence[Tensor], output: Tensor) -> None:
        """Look at one more step."""
        parts = [part.to(self.dtype) for part in parts]
        pairs = self.rules if len(parts) == 2 else []
        errors = [(rule, max(error, difference(rule(parts, None), output))) for rule, error in pairs]
        self.rules = [(rule, error) for rule, error in errors if error <= tolerance(output)]
        if self.weights is not None:
            found = _weights(parts, output, self.numbers)
            self.error = max(self.error, difference(Linear(tuple(found.tolist()))(parts, None), output))
            self.weights = [*self.weights, found] if self.error <= tolerance(output) else None

    def result(self) -> Combine | None:
        """The best of the rules that are left."""
        best, error = min(self.rules, key=lambda pair: pair[1], default=(None, torch.inf))
        if self.weights is None or error < self.error:
            return best
        table = torch.stack(self.weights)
        constant = bool((table - table[0]).abs().max() < 1e-6)
        return Linear(tuple(table[0].tolist())) if constant else Scheduled(table)


def difference(a: Tensor, b: Tensor) -> float:
    """The root mean square of a - b, in roundings of b."""
    if a.shape != b.shape:
        return torch.inf
    exact, unit = b.detach().cpu().double(), torch.finfo(b.dtype).eps
    distance = float((a.detach().cpu().double() - exact).norm())
    return distance / max(float(exact.norm()) * unit, torch.finfo(torch.float64).tiny)


def tolerance(output: Tensor) -> float:
    """Roundings that two ways to write one formula may differ by; in half precision they must be written alike."""
    return 8.0 if output.dtype == torch.float32 else 1.0


def same(a: Any, b: Any) -> bool:
    """Whether two arguments are equal, bit for bit."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and torch.equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b)


def _labels(layout: Layout) -> dict[int, str]:
    """ "call.argument" for every leaf."""
    paths = [(leaf, path) for path, leaf in leaves_of(layout.skeleton) if isinstance(leaf, Slot)]
    return {int(n): ".".join(str(p) for p in (path[0], *path[2:])) for n, path in paths}


def _time(writer: Writer, moment: Moment) -> Tensor:
    t = moment.timestep.to(moment.sample.device)
    scalar = isinstance(writer, Time) and writer.scalar
    return t.reshape(()) if scalar else t.reshape(1).expand(len(moment.sample))


def _blocks(output: Any, sample: Tensor) -> int:
    rows = len(main_output(output))
    if rows % len(sample):
        raise Mismatch(f"the denoiser gives {rows} rows for {len(sample)} samples")
    return rows // len(sample)


def _candidates(leaf: Any, x: Tensor, blocks: int) -> list[Writer]:
    return [*_latents(leaf, x), *_times(leaf, x, blocks)]


def _latents(leaf: Any, x: Tensor) -> list[Latents]:
    """The ways in which a leaf of this form could hold the latents."""
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
    differ = [d for d in range(1, x.ndim) if leaf.shape[d] != x.shape[d]]
    if len(differ) > 1 or leaf.ndim > x.ndim or any(leaf.shape[d] < x.shape[d] for d in differ):
        return []
    return [Latents(m, leaf.dtype, differ[0] if differ else None)]


def _times(leaf: Any, x: Tensor, blocks: int) -> list[Time]:
    """The ways in which a leaf of this form could hold the timestep."""
    if not isinstance(leaf, Tensor) or leaf.dtype == torch.bool:
        return []
    if leaf.ndim and leaf.shape[0] != 1 and leaf.shape[0] % len(x):
        return []
    scalar = leaf.ndim == 0 or leaf.shape[0] % len(x) != 0
    m = blocks if scalar else leaf.shape[0] // len(x)
    kinds = dict.fromkeys([leaf.dtype, torch.float32])
    return [Time(form, m, kind, leaf.dtype, scalar, tuple(leaf.shape)) for kind in kinds for form in FORMS]


def _weights(parts: Sequence[Tensor], output: Tensor, numbers: Sequence[float]) -> Tensor:
    """Least squares, each weight snapped to a number that the call contains (or 1 minus it) if it is that one."""
    stride = -(-output.numel() // ENOUGH)
    columns = torch.stack([part.detach().flatten()[::stride].cpu().double() for part in parts], 1)
    if torch.linalg.matrix_rank(columns) < columns.shape[1]:
        raise Mismatch("the parts of the denoiser's output cannot be told apart")
    target = output.detach().flatten()[::stride].cpu().double()
    found = torch.linalg.lstsq(columns, target[:, None]).solution.flatten()
    known = [0.0, 1.0, -1.0, *(v for g in numbers for v in (g, 1 - g, 1 + g, -g))]
    exact = torch.tensor(known, dtype=torch.float64)
    distance = (found[:, None] - exact).abs()
    tolerance = 1e-5 if output.dtype == torch.float32 else 2e-2
    return torch.where(distance.amin(1) < tolerance, exact[distance.argmin(1)], found)
