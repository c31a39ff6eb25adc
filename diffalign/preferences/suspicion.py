"""Users whose answers look random are named with the reason; what is done about them is for people to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import median

from scipy.stats import binomtest

from diffalign.preferences.agreement import Pair, choices
from diffalign.preferences.vote import Vote

LEVEL = 0.01
"""How often an honest user may be flagged by a test; shared by all users of one store."""
FEWEST = 10
"""Answers below which nothing is said of a user."""
FAST = 0.4
"""Seconds in which nobody looks at two pictures."""


def suspicious(votes: Iterable[Vote]) -> dict[str, list[str]]:
    """user -> why the answers look random, in words; users whose answers do not are left out."""
    votes = list(votes)
    users = sorted({vote.user for vote in votes})
    level, told = LEVEL / max(len(users), 1), choices(votes)
    hits = {user: _with_consensus(user, told) for user in users}
    found = {}
    for user in users:
        own = [vote for vote in votes if vote.user == user]
        reasons = [_random(user, hits, level), _one_sided(own, level), _hasty(own)]
        found[user] = [reason for reason in reasons if reason]
    return {user: reasons for user, reasons in found.items() if reasons}


def _with_consensus(user: str, told: Mapping[Pair, Mapping[str, str]]) -> tuple[int, int]:
    """How often the user chose the picture that most of the others chose, and of how many pairs."""
    agreed = pairs = 0
    for labels in told.values():
        others = Counter(label for name, label in labels.items() if name != user)
        ahead = others["first"] - others["second"]
        if ahead and labels.get(user) in ("first", "second"):
            pairs += 1
            agreed += (ahead > 0) == (labels[user] == "first")
    return agreed, pairs


def _random(user: str, hits: Mapping[str, tuple[int, int]], level: float) -> str:
    """No better than chance, and worse than the others are: someone of another taste is neither."""
    agreed, pairs = hits[user]
    elsewhere = [hit for name, hit in hits.items() if name != user]
    theirs = sum(hit for hit, _ in elsewhere) / max(sum(of for _, of in elsewhere), 1)
    if pairs < FEWEST or binomtest(agreed, pairs, 0.5).pvalue < 0.05:
        return ""
    if binomtest(agreed, pairs, theirs, alternative="less").pvalue >= level:
        return ""
    return f"chose as most others did in {agreed} of {pairs} pairs, no more than by chance; others did in {theirs:.0%}"


def _one_sided(own: Iterable[Vote], level: float) -> str:
    sides = Counter(str(vote.choice) for vote in own if vote.choice in ("a", "b"))
    if sides.total() < FEWEST or binomtest(sides["a"], sides.total(), 0.5).pvalue >= level:
        return ""
    side, count = sides.most_common(1)[0]
    place = "first" if side == "a" else "second"
    return f"chose the picture shown {place} in {count} of {sides.total()} pairs, though sides are drawn at random"


def _hasty(own: Iterable[Vote]) -> str:
    times = [vote.seconds for vote in own if vote.seconds is not None]
    if len(times) < FEWEST or median(times) >= FAST:
        return ""
    return f"answered in {median(times):.1f} s (median of {len(times)}), too fast to look at the pictures"
