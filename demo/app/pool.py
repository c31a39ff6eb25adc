"""Pairs that are ready before anybody clicks: a thread draws ahead, what users ask for and what all may be shown."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

from diffalign.errors import DiffalignError
from diffalign_demo.app.choosing import Kind
from diffalign_demo.app.studio import Pair

Paint = Callable[[Kind, Sequence[str | None]], list[Pair]]

EVERYBODY = ""
"""Stands for all users where pairs, or problems, are nobody's own."""
AHEAD, AT_ONCE = 8, 4
"""Pairs that are kept ready of a kind, and how many are drawn together."""
WANTED_SECONDS = 120.0
"""A kind that nobody asked for in this time is not drawn ahead."""
SHARED = 0.1
"""The share of showings that repeat a pair which others saw: who agrees with whom is measured on them."""


class Pool:
    """A user sees no pair twice; a user's own prompt waits behind no more than one drawing of the others'."""

    def __init__(self, paint: Paint) -> None:
        self._paint, self._changed = paint, threading.Condition()
        self._fresh: dict[Kind, deque[Pair]] = defaultdict(deque)
        self._shared: dict[Kind, deque[tuple[Pair, set[str]]]] = defaultdict(lambda: deque(maxlen=64))
        self._asked: dict[str, tuple[Kind, str]] = {}  # by user, the first to ask first
        self._own: dict[str, Pair] = {}
        self._last_wanted: dict[Kind, float] = {}
        self._own_last, self._age, self._closed = False, 0, False
        self._problems: dict[str, DiffalignError] = {}
        self._thread = threading.Thread(target=self._work, name="pairs", daemon=True)
        self._thread.start()

    def take(self, user: str, kind: Kind, seconds: float) -> Pair | None:
        """The next pair for a user, waited for so long; an error where none can be drawn."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._last_wanted[kind] = time.monotonic()
            self._changed.notify_all()
            while True:
                self._tell(user)
                if pair := self._ready(user, kind):
                    return pair
                if EVERYBODY in self._problems:
                    raise self._problems[EVERYBODY]
                if not self._changed.wait(deadline - time.monotonic()):
                    return None

    def ask(self, user: str, kind: Kind, prompt: str) -> None:
        """Draw a user's own prompt next; one at a time."""
        with self._changed:
            if user in self._asked:
                raise DiffalignError(
                    "your last prompt is still being drawn; wait for it, then ask for the next."
                )
            self._problems.pop(user, None)
            self._asked[user] = kind, prompt
            self._changed.notify_all()

    def has_own(self, user: str) -> bool:
        """Whether a pair of a user's own prompt is ready, being drawn, or could not be drawn."""
        with self._changed:
            return user in self._asked or user in self._problems or user in self._own

    def clear(self) -> None:
        """Forget what is ready: the model has changed."""
        with self._changed:
            self._fresh.clear()
            self._shared.clear()
            self._asked |= {user: (pair.kind, pair.prompt) for user, pair in self._own.items()}
            self._own.clear()
            self._age += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Stop drawing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=10)

    # -- taking, with the lock held -----------------------------------------------------------

    def _tell(self, user: str) -> None:
        """Tell a user once that the own prompt could not be drawn."""
        if user in self._problems:
            raise self._problems.pop(user)

    def _ready(self, user: str, kind: Kind) -> Pair | None:
        if user in self._own:
            return self._own.pop(user)
        if user in self._asked:
            return None
        repeat = random.random() < SHARED or not self._fresh[kind]
        return (repeat and self._repeated(user, kind)) or self._new(user, kind)

    def _new(self, user: str, kind: Kind) -> Pair | None:
        if not self._fresh[kind]:
            return None
        pair = self._fresh[kind].popleft()
        self._shared[kind].append((pair, {user}))
        self._changed.notify_all()
        return pair

    def _repeated(self, user: str, kind: Kind) -> Pair | None:
        for pair, seen in self._shared[kind]:
            if user not in seen:
                seen.add(user)
                return pair
        return None

    # -- drawing, in the thread ---------------------------------------------------------------

    def _work(self) -> None:
        while job := self._next_job():
            user, kind, prompts, age = job
            try:
                self._keep(user, kind, self._paint(kind, prompts), age)
            except Exception as error:
                self._failed(user, error)

    def _next_job(self) -> tuple[str, Kind, list[str | None], int] | None:
        """What to draw next, waited for; None at the end. Users' prompts and the others take turns."""
        with self._changed:
            while not self._closed:
                lacking = self._lacking()
                if self._asked and not (self._own_last and lacking):
                    user, (kind, prompt) = next(iter(self._asked.items()))
                    self._own_last = True
                    return user, kind, [prompt], self._age
                if lacking:
                    self._own_last = False
                    count = AT_ONCE if self._fresh[lacking] else 1  # the first one comes soon
                    return EVERYBODY, lacking, [None] * count, self._age
                self._changed.wait(5)
        return None

    def _lacking(self) -> Kind | None:
        now = time.monotonic()
        wanted = [kind for kind, last in self._last_wanted.items() if now - last < WANTED_SECONDS]
        short = [kind for kind in wanted if len(self._fresh[kind]) < AHEAD]
        return min(short, key=lambda kind: len(self._fresh[kind]), default=None)

    def _keep(self, user: str, kind: Kind, pairs: Sequence[Pair], age: int) -> None:
        with self._changed:
            if age == self._age:  # else the model has changed since: draw again
                if user == EVERYBODY:
                    self._fresh[kind].extend(pairs)
                else:
                    del self._asked[user]
                    self._own |= {user: pairs[0]} if pairs else {}
            self._changed.notify_all()

    def _failed(self, user: str, error: Exception) -> None:
        """Tell those who wait, and try again a little later; a prompt that failed is not tried again."""
        logging.getLogger(__name__).error("no pair could be drawn", exc_info=error)
        told = (
            error if isinstance(error, DiffalignError) else DiffalignError(f"no pair could be drawn: {error}")
        )
        with self._changed:
            self._asked.pop(user, None)
            self._problems[user] = told
            self._changed.notify_all()
        if user == EVERYBODY:
            time.sleep(1)
            with self._changed:
                del self._problems[EVERYBODY]
