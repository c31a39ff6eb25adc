"""What a terminal shows of people's votes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffalign.preferences import Score, Vote, agreement, bradley_terry, suspicious

CONSOLE = Console(highlight=False)


def show_votes(votes: Sequence[Vote]) -> None:
    """Users, their agreement, and the models."""
    decided = sum(bool(vote.pairs()) for vote in votes)
    CONSOLE.print(f"{len(votes)} votes, {decided} of them decided")
    if votes:
        CONSOLE.print(users(votes))
        CONSOLE.print(_agreed(votes))
    if scores := bradley_terry(votes):
        CONSOLE.print(models(scores))


def users(votes: Sequence[Vote]) -> Table:
    """One line a user."""
    table, flagged = (
        Table("user", "votes", "looks random because", box=None, pad_edge=False),
        suspicious(votes),
    )
    for user, count in Counter(vote.user for vote in votes).most_common():
        table.add_row(escape(user), str(count), escape("; ".join(flagged.get(user, ()))))
    return table


def models(scores: Sequence[Score]) -> Table:
    """One line a model, the best first."""
    table = Table("model", "score (logits)", "95 % interval", "wins", box=None, pad_edge=False)
    for one in scores:
        interval = f"{one.low:+.2f} to {one.high:+.2f}"
        table.add_row(escape(one.model), f"{one.score:+.2f}", interval, f"{one.wins:g} of {one.games}")
    return table


def _agreed(votes: Sequence[Vote]) -> str:
    found = agreement(votes)
    if not found.pairs:
        return "nobody voted on a pair that somebody else saw, so agreement is not known"
    return f"agreement on {found.pairs} pairs that several saw: alpha {found.alpha:.2f} (1: all agree, 0: chance)"
