"""Rewards of other packages: the entry points of the group `diffalign.rewards`.

Looking them up imports nothing of theirs, so a broken one is in nobody's way until it is used.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from diffalign.errors import DiffalignError

GROUP = "diffalign.rewards"


def found() -> dict[str, list[EntryPoint]]:
    """name -> who offers it; more than one is an error as soon as somebody wants it."""
    offers: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        offers.setdefault(point.name, []).append(point)
    return offers


def package(point: EntryPoint) -> str:
    """`name version` of the installed package that offers it."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def load(name: str, points: list[EntryPoint], built_in: bool = False) -> Any:
    """What the only offer points to; an error names the package at fault, or both that want one name."""
    offered = ["diffalign itself"] * built_in + sorted(map(package, points))
    if len(offered) > 1:
        raise DiffalignError(
            f"the reward {name!r} is offered by {' and by '.join(offered)}, and only one can be meant. Uninstall "
            "one package, or name the class itself, as module:NAME."
        )
    try:
        found = points[0].load()
        if not callable(found):
            raise TypeError(f"a reward is a class or a function, not {found!r}")
        return found
    except Exception as error:  # whatever a package of somebody else does wrong
        raise DiffalignError(
            f"the reward {name!r} of the package {offered[0]} cannot be loaded from {points[0].value}: "
            f"{type(error).__name__}: {error}. Update or uninstall that package."
        ) from error
