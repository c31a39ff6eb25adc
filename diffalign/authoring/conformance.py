"""What every reward must hold to. In a test of one's own reward: `conform(MyReward())`.

A check is a function of a `Subject` that yields what is wrong, and raises `Skip` where it does not apply.
Pictures are float32 (B, 3, H, W) in [0, 1], or videos (B, F, 3, H, W) for rewards that declare `video`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from diffalign.authoring import differences
from diffalign.authoring.subject import Subject
from diffalign.errors import DiffalignError
from diffalign.reward import AnyReward, capability

Verdict = Literal["passed", "failed", "skipped"]

HOSTILE = {
    "unicode": "un café à Zürich, 猫 🐈\u200d⬛ \u202eright to left",
    "empty": "",
    "2,000 characters": ("a very long walk " * 118)[:2000],
}
TOLERANCE = 1e-4
"""By how much a score may move, in scores or as a share of them, through what must not matter."""


class Skip(Exception):
    """A check that does not apply; the message says why."""


@dataclass(frozen=True)
class Finding:
    """What a check found; note: what is wrong, or why it was skipped."""

    check: str
    verdict: Verdict
    note: str = ""


def shapes(subject: Subject) -> Iterator[str]:
    """One real number a picture, and as many of each part; one for a whole set."""
    for count in (3, 2) if subject.kind != "picture" else (3, 1):
        scores = subject.scores(subject.pictures(count))
        named = {"score": scores.value, **scores.parts}
        named |= {} if scores.uncertainty is None else {"uncertainty": scores.uncertainty}
        for name, value in named.items():
            if value.shape != scores.value.shape or not bool(value.isfinite().all()):
                yield f"{name} has shape {tuple(value.shape)} or is not finite, for {count} pictures"
            if not value.is_floating_point():
                yield f"{name} is {value.dtype}; return float32"


def plain_pictures(subject: Subject) -> Iterator[str]:
    """Finite on black, on white and on one colour."""
    for name, level in {"black": (0, 0, 0), "white": (1, 1, 1), "one colour": (0.2, 0.5, 0.9)}.items():
        yield from _failing(name, partial(subject.ask, subject.plain(level)))


def odd_sizes(subject: Subject) -> Iterator[str]:
    """Finite on 8 x 8 pixels, and on pictures 16 times as wide, or as tall, as the other way."""
    for height, width in ((8, 8), (32, 512), (512, 32)):
        images = subject.pictures(2, height, width)
        yield from _failing(f"{width} x {height}", partial(subject.ask, images))


def prompts(subject: Subject) -> Iterator[str]:
    """Finite for unicode, for nothing and for 2,000 characters, or refused in words by a picky reward."""
    images = subject.pictures(2)
    for name, text in HOSTILE.items():
        said = f"{subject.prompts[0]} {text}" if subject.picky and text else text
        wanted = (DiffalignError,) if subject.picky and not text else ()
        yield from _failing(f"{name} prompt", partial(subject.ask, images, [said] * 2), wanted)


def batches(subject: Subject) -> Iterator[str]:
    """The score of a picture does not depend on what else is in the batch; that of a set not on the order."""
    images, said = subject.pictures(3), subject.some(3)
    together = subject.ask(images, said)
    if subject.kind == "picture":
        other = torch.cat([subject.ask(images[k : k + 1], said[k : k + 1]) for k in range(3)])
        yield from _moved("alone, pictures score other than together", together, other)
    backwards = subject.ask(images.flip(0), said[::-1])
    expected = together if subject.kind == "set" else together.flip(0)
    yield from _moved("in another order, pictures score otherwise", expected, backwards)


def repeats(subject: Subject) -> Iterator[str]:
    """The same pictures and prompts have the same scores."""
    images = subject.pictures(2)
    yield from _moved("asked again, it answers otherwise", subject.ask(images), subject.ask(images))


def inputs(subject: Subject) -> Iterator[str]:
    """Pictures and prompts are left as they were."""
    images, said = subject.pictures(2), subject.some(2)
    before, texts = images.clone(), list(said)
    subject.ask(images, said)
    if not torch.equal(images, before):
        yield "the pictures it was given were changed; work on a copy"
    if said != texts:
        yield "the list of prompts it was given was changed; work on a copy"


def gradient(subject: Subject) -> Iterator[str]:
    """Where it says differentiable, its gradient is that of finite differences along several directions."""
    if not capability(subject.reward, "differentiable"):
        raise Skip("it does not declare `differentiable`")
    yield from differences.wrong(subject, subject.pictures(2))


def devices(subject: Subject) -> Iterator[str]:
    """CPU and GPU agree to a thousandth."""
    if not torch.accelerator.is_available():
        raise Skip("there is no GPU here")
    images, device = subject.pictures(2), torch.accelerator.current_accelerator()
    yield from _moved("CPU and GPU differ", subject.ask(images), subject.ask(images.to(device)), 1e-3)


CHECKS: dict[str, Callable[[Subject], Iterator[str]]] = {
    "shapes and types": shapes,
    "plain pictures": plain_pictures,
    "very small, very wide": odd_sizes,
    "prompts": prompts,
    "independent of the batch": batches,
    "repeatable": repeats,
    "inputs unchanged": inputs,
    "gradient": gradient,
    "CPU and GPU": devices,
}


def examine(reward: AnyReward, prompts: Sequence[str] | None = None) -> list[Finding]:
    """What every check finds."""
    subject = Subject.of(reward, prompts)
    return [_finding(name, check, subject) for name, check in CHECKS.items()]


def conform(reward: AnyReward, prompts: Sequence[str] | None = None) -> None:
    """For tests: an AssertionError that lists every check that fails."""
    failed = [
        f"{found.check}: {found.note}" for found in examine(reward, prompts) if found.verdict == "failed"
    ]
    assert not failed, "\n".join([f"{Subject.of(reward).name} does not conform:", *failed])


def _finding(name: str, check: Callable[[Subject], Iterator[str]], subject: Subject) -> Finding:
    try:
        wrong = list(check(subject))
    except Skip as why:
        return Finding(name, "skipped", str(why))
    except Exception as error:  # whatever a reward of somebody else does wrong
        wrong = [_said(error)]
    return Finding(name, "failed" if wrong else "passed", "; ".join(wrong))


def _failing(
    name: str, call: Callable[[], object], allowed: tuple[type[Exception], ...] = ()
) -> Iterator[str]:
    """What a call raises, unless that is allowed."""
    try:
        call()
    except allowed:
        return
    except Exception as error:
        yield f"{name}: {_said(error)}"


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, DiffalignError) else f"{type(error).__name__}: {error}"


def _moved(what: str, expected: Tensor, found: Tensor, tolerance: float = TOLERANCE) -> Iterator[str]:
    far = (found - expected).abs() / expected.abs().clamp_min(1)
    if not float(far.max()) <= tolerance:
        yield f"{what}: {_digits(expected)} became {_digits(found)}"


def _digits(values: Tensor) -> str:
    return ", ".join(f"{value:.6g}" for value in values.tolist())
