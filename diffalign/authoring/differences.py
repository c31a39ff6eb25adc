"""A reward's gradient against finite differences, in double precision where its arithmetic allows that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import isclose
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from diffalign.authoring.subject import Subject

STEPS = (1e-7, 1e-6, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""In units of a picture's range; one of them must agree: large ones are blunt, small ones drown in rounding."""

TOLERANCE = {torch.float64: 0.02, torch.float32: 0.15}
"""By how much of itself a derivative may be off."""


def wrong(subject: Subject, images: Tensor) -> Iterator[str]:
    """What is wrong with the gradient at these pictures."""
    with doubled(subject.reward):
        if _takes_double(subject, images):
            yield from _compared(subject, images.double())
            return
    yield from _compared(subject, images)


def _compared(subject: Subject, images: Tensor) -> Iterator[str]:
    images = images.clone().requires_grad_()
    total = subject.scores(images).value.sum()
    slope = torch.autograd.grad(total, images, allow_unused=True)[0] if total.requires_grad else None
    if slope is None or not bool(slope.isfinite().all()) or not bool(slope.any()):
        yield "it declares `differentiable`, and its gradient is missing, zero or not finite"
    else:
        yield from _off(subject, images.detach(), slope)


def _off(subject: Subject, images: Tensor, slope: Tensor) -> Iterator[str]:
    """Directions in which `slope` is not what finite differences say."""
    size, eps = float(subject.ask(images).abs().sum()), torch.finfo(images.dtype).eps
    for name, way in directions(slope).items():
        analytic, rounding = float((slope.double() * way).sum()), 8 * eps * size / max(STEPS)
        seen: list[float] = []
        for numeric in (_difference(subject, images, way, step) for step in STEPS):
            seen.append(numeric)
            if isclose(numeric, analytic, rel_tol=TOLERANCE[images.dtype], abs_tol=rounding):
                break
        else:
            said = ", ".join(f"{numeric:.4g}" for numeric in seen)
            yield f"{name} its gradient is {analytic:.4g}, and finite differences of smaller to larger steps {said}"


def directions(slope: Tensor) -> dict[str, Tensor]:
    """Along the gradient, which shows its length; and smooth ones, which show what it leaves out."""
    draw = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    smooth = interpolate(draw, slope.shape[-2:], mode="bicubic").to(slope)
    ways = {"along itself": slope}
    for k, colour in enumerate(("red", "green", "blue")):
        ways[f"towards {colour}"] = torch.zeros_like(slope).index_fill(
            -3, torch.tensor(k, device=slope.device), 1.0
        )
    ways |= {f"along smooth noise {k}": each.expand_as(slope) for k, each in enumerate(smooth)}
    return {name: way.double() / way.abs().max() for name, way in ways.items()}


def _difference(subject: Subject, images: Tensor, way: Tensor, step: float) -> float:
    """The central difference. Its ends want gradients too: without, rewards round as the official ones do."""
    ends = [(images + sign * step * way).to(images.dtype).requires_grad_() for sign in (1, -1)]
    ahead, behind = (subject.ask(end).sum() for end in ends)
    return float(ahead - behind) / (2 * step)


def _takes_double(subject: Subject, images: Tensor) -> bool:
    """Whether the reward takes double pictures and computes with them."""
    try:
        return subject.scores(images.double()).value.dtype == torch.float64
    except Exception:  # a model that insists on single precision
        return False


@contextmanager
def doubled(reward: object) -> Iterator[None]:
    """Within this block the models that a reward holds compute in double precision."""
    tensors = [t for m in models(reward) for t in (*m.parameters(), *m.buffers()) if t.is_floating_point()]
    kept = [(tensor, tensor.dtype) for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.double()
        yield
    finally:
        for tensor, dtype in kept:
            tensor.data = tensor.data.to(dtype)


def models(thing: Any, seen: set[int] | None = None) -> Iterator[nn.Module]:
    """The modules among an object's attributes, and among theirs."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, str | bytes | int | float | Tensor | type):
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        yield thing
        return
    for inner in _inside(thing):
        yield from models(inner, seen)


def _inside(thing: Any) -> list[Any]:
    match thing:
        case partial():
            return [thing.func, *thing.args, *thing.keywords.values()]
        case Mapping():
            return list(thing.values())
        case list() | tuple():
            return list(thing)
        case FunctionType() | ModuleType():
            return []
    return list(getattr(thing, "__dict__", {}).values())
