"""What rewards are installed: from where, what they need and what they can do. No weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from diffalign import plugins, registry
from diffalign.arguments import parameters
from diffalign.errors import DiffalignError
from diffalign.reward import capability, kind

BUILT_IN = "built in"


@dataclass(frozen=True)
class Entry:
    """One reward; error: why it cannot be used, where it cannot."""

    name: str
    source: str
    needs: tuple[str, ...] = ()
    can: tuple[str, ...] = ()
    error: str = ""


def catalog() -> list[Entry]:
    """Every reward that a config can name."""
    return [_entry(name) for name in registry.rewards()]


def _entry(name: str) -> Entry:
    source = ", ".join(map(plugins.package, plugins.found().get(name, []))) or BUILT_IN
    try:
        maker = registry.reward_maker(name)
        declared = registry.reward_class(name)
    except DiffalignError as error:
        return Entry(name, source, error=str(error))
    except ImportError as error:
        return Entry(name, source, error=f"cannot be imported: {error}")
    return Entry(name, source, tuple(_needs(maker, declared)), tuple(_can(maker, declared)))


def _needs(maker: Callable[..., Any], declared: Any) -> Iterator[str]:
    """What it declares in `needs`, and the arguments it cannot do without."""
    said = getattr(declared, "needs", ())
    yield from [said] if isinstance(said, str) else said
    for parameter in parameters(maker).values():
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            what = " (a reward)" if registry.takes_reward(parameter) else ""
            yield f"argument {parameter.name}{what}"


def _can(maker: Callable[..., Any], declared: Any) -> Iterator[str]:
    """What it judges, and whether gradients reach it; around another reward that may be for the other to say."""
    family = kind(declared)
    yield {"picture": "video" if capability(declared, "video") else "pictures"}.get(family, family)
    if hasattr(declared, "score_noisy"):
        yield "noisy latents"
    inner = [p.name for p in parameters(maker).values() if registry.takes_reward(p)]
    if capability(declared, "differentiable"):
        yield "differentiable"
    elif inner and not hasattr(declared, "differentiable"):
        yield f"differentiable if its {inner[0]} is"
    if capability(declared, "needs_reference"):
        yield "compares with references"
