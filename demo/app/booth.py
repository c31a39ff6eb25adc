"""Where users vote: who is shown which pair next, and what they say of it. All of it goes through the store."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from diffalign.errors import DiffalignError, RunError
from diffalign.preferences import Store, Vote
from diffalign_demo.app.choosing import Kind, Mode
from diffalign_demo.app.pool import Pool
from diffalign_demo.app.studio import Pair

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


@dataclass
class Desk:
    """A user's open pairs, the one to show last; `turn` is held by the request that looks for another."""

    offers: list[Offer] = field(default_factory=list)
    turn: threading.Lock = field(default_factory=threading.Lock)


class Booth:
    """A pair stays a user's own until it is voted on or skipped: reloading the page shows it again."""

    def __init__(self, store: Store, pool: Pool) -> None:
        self.store, self.pool = store, pool
        self._desks: OrderedDict[str, Desk] = OrderedDict()
        self._lock, self._sides = threading.Lock(), random.SystemRandom()

    def next(self, user: str, kind: Kind, seconds: float) -> Offer | None:
        """What the user is to compare now; None where nothing was drawn in so many seconds."""
        with self._desk(user).turn:
            if not self.pool.has_own(user) and (offer := self._top(user, kind)):
                return offer
            pair = self.pool.take(user, kind, seconds)
            return None if pair is None else self._offered(user, pair)

    def _offered(self, user: str, pair: Pair) -> Offer:
        """A new showing of a pair, its sides drawn by lot."""
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
        """Take back the user's last vote on a pair and show it again; None where there is none.

        Rankings stay: their pictures have led to others since.
        """
        vote = self.store.undo(user, "pair", token=token)
        if vote is not None:
            pictures = vote.pictures[0], vote.pictures[1]
            self._put(user, Offer(vote.showing, vote.prompt, pictures, Kind(mode_of(vote)), again=True))
        return vote

    def _desk(self, user: str) -> Desk:
        with self._lock:
            desk = self._desks.pop(user, None) or Desk()
            self._desks[user] = desk
            if len(self._desks) > REMEMBERED:
                self._desks.popitem(last=False)
            return desk

    def _top(self, user: str, kind: Kind) -> Offer | None:
        """The open pair that was put there last, of those of the kind and those that were undone."""
        mine = self._desk(user).offers
        return next((o for o in reversed(mine) if o.again or o.kind == kind), None)

    def _put(self, user: str, offer: Offer) -> None:
        self._close(user, offer.showing)
        self._desk(user).offers.append(offer)

    def _close(self, user: str, showing: int) -> None:
        desk = self._desk(user)
        desk.offers = [offer for offer in desk.offers if offer.showing != showing]


def mode_of(vote: Vote) -> Mode:
    """What a vote was for."""
    return "judge" if len(set(vote.models)) > 1 else "train"
