"""Where users vote: who is shown which pair next, and what they say of it. All of it goes through the store."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from diffalign.errors import DiffalignError, RunError
from diffalign.preferences import Store, Vote
from diffalign_demo.app.choosing import Kind
from diffalign_demo.app.pool import Pool

REMEMBERED = 10_000
"""Users whose open pairs are remembered; the others get new ones."""


@dataclass(frozen=True)
class Offer:
    """A pair in the order in which it is shown; `again`: its vote was undone."""

    showing: int
    prompt: str
    pictures: tuple[str, str]
    kind: Kind
    again: bool = False


class Booth:
    """A pair stays a user's own until it is voted on or skipped: reloading the page shows it again."""

    def __init__(self, store: Store, pool: Pool) -> None:
        self.store, self.pool = store, pool
        self._open: OrderedDict[str, list[Offer]] = OrderedDict()
        self._lock, self._sides = threading.Lock(), random.SystemRandom()

    def next(self, user: str, kind: Kind, seconds: float) -> Offer | None:
        """What the user is to compare now; None where nothing was drawn in so many seconds."""
        if not self.pool.has_own(user) and (offer := self._top(user, kind)):
            return offer
        pair = self.pool.take(user, kind, seconds)
        if pair is None:
            return None
        one, other = self._sides.sample(pair.pictures, 2)
        showing = self.store.show(user, [one, other])
        offer = Offer(showing, pair.prompt, (one, other), pair.kind)
        self._put(user, offer)
        return offer

    def vote(self, user: str, showing: int, choice: str, seconds: float | None, token: str) -> Vote:
        """Record a choice, once however often it is sent."""
        try:
            vote = self.store.vote(showing, user, choice, seconds=seconds, token=token)
        except RunError:
            raise
        except DiffalignError:  # answered before, in another window: whoever asks again gets another pair
            self._close(user, showing)
            raise
        self._close(user, showing)
        return vote

    def skip(self, user: str, showing: int) -> None:
        """Record that the user does not choose."""
        self.store.skip(showing, user)
        self._close(user, showing)

    def undo(self, user: str, token: str) -> Vote | None:
        """Take back the user's last vote and show its pair again; None where there is none, or it was a ranking."""
        mine = self.store.votes(user)
        if mine and mine[-1].kind != "pair":  # whose pictures have led to others since
            return None
        vote = self.store.undo(user, token=token)
        if vote is not None:
            mode = "judge" if len(set(vote.models)) > 1 else "train"
            pictures = vote.pictures[0], vote.pictures[1]
            self._put(user, Offer(vote.showing, vote.prompt, pictures, Kind(mode), again=True))
        return vote

    def _top(self, user: str, kind: Kind) -> Offer | None:
        """The open pair that was put there last, of those of the kind and those that were undone."""
        with self._lock:
            mine = self._open.get(user, [])
            return next((o for o in reversed(mine) if o.again or o.kind == kind), None)

    def _put(self, user: str, offer: Offer) -> None:
        with self._lock:
            others = [o for o in self._open.pop(user, []) if o.showing != offer.showing]
            self._open[user] = [*others, offer]
            while len(self._open) > REMEMBERED:
                self._open.popitem(last=False)

    def _close(self, user: str, showing: int) -> None:
        with self._lock:
            self._open[user] = [o for o in self._open.get(user, []) if o.showing != showing]


def decided(votes: Sequence[Vote]) -> int:
    """How many votes say which picture is better."""
    return sum(bool(vote.pairs()) for vote in votes)
