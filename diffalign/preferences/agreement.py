"""Whether people agree: Krippendorff's alpha of their choices between the same pictures.

Krippendorff 2011, "Computing Krippendorff's alpha-reliability", nominal data.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from diffalign.preferences.vote import Vote

Pair = tuple[str, str]
"""Two picture ids in alphabetic order, whatever the sides they were shown on."""


@dataclass(frozen=True)
class Agreement:
    """alpha: 1 if all agree, 0 if no more than by chance, nan where nothing can be said.

    pairs: how many pairs of pictures at least two users chose between; users: how many these are.
    """

    alpha: float
    pairs: int
    users: int


def agreement(votes: Iterable[Vote]) -> Agreement:
    """Agreement on which of two pictures is better, a tie or both bad, whatever the sides."""
    shared = {pair: told for pair, told in choices(votes).items() if len(told) > 1}
    users = {user for told in shared.values() for user in told}
    return Agreement(alpha(told.values() for told in shared.values()), len(shared), len(users))


def choices(votes: Iterable[Vote]) -> dict[Pair, dict[str, str]]:
    """pair -> user -> "first" or "second" of the pair, "tie" or "both_bad"; a user's latest word counts."""
    found: dict[Pair, dict[str, str]] = defaultdict(dict)
    for vote in votes:
        for one, other, won in vote.compared():
            pair = (min(one, other), max(one, other))
            better = "first" if one == pair[0] else "second"
            found[pair][vote.user] = better if won == 1 else str(vote.choice)
    return found


def alpha(units: Iterable[Iterable[str]]) -> float:
    """1 - observed / expected disagreement of the labels that every unit was given, by one user each."""
    counts = [count for count in map(Counter, units) if count.total() > 1]
    total = Counter[str]()
    for count in counts:
        total.update(count)
    expected = _differing(total) / max(total.total() - 1, 1)
    observed = sum(_differing(count) / (count.total() - 1) for count in counts)
    return 1 - observed / expected if expected else float("nan")


def _differing(count: Counter[str]) -> int:
    """How many ordered pairs of labels differ."""
    return count.total() ** 2 - sum(k * k for k in count.values())
