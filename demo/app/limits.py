"""So much of everything for each user, so that nobody can starve the others."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from diffalign.errors import DiffalignError

PROMPT_LENGTH = 200
"""Characters of a prompt."""
BODY_BYTES = 256 * 1024
"""Bytes of a request."""
REMEMBERED = 10_000
"""Users whose requests are counted."""


class Rate:
    """A token bucket for each user: `burst` requests at once, `per_second` in the long run."""

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second, self.burst, self._clock = per_second, burst, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, user: str) -> float:
        """Take one: 0 where it was there, else the seconds until it will be."""
        with self._lock:
            now = self._clock()
            left, last = self._left.pop(user, (float(self.burst), now))
            left = min(self.burst, left + (now - last) * self.per_second)
            granted = left >= 1
            self._left[user] = (left - granted, now)
            if len(self._left) > REMEMBERED:
                self._left.popitem(last=False)
            return 0.0 if granted else (1 - left) / self.per_second


class Seats:
    """Long work, such as a search: one at a time for a user, and so many for all."""

    def __init__(self, seats: int) -> None:
        self.seats, self._taken, self._lock = seats, set[str](), threading.Lock()

    @contextmanager
    def seat(self, user: str) -> Iterator[None]:
        """Hold a seat, or an error that says who else does."""
        with self._lock:
            if user in self._taken:
                raise DiffalignError("one of yours is still running, maybe in another window; stop it first.")
            if len(self._taken) >= self.seats:
                raise DiffalignError(
                    f"{self.seats} others are at it, which is all there is room for; try again soon."
                )
            self._taken.add(user)
        try:
            yield
        finally:
            with self._lock:
                self._taken.discard(user)


def check_prompt(text: str) -> str:
    """A prompt as it is used: one line, trimmed; an error where it is empty or too long."""
    prompt = " ".join(text.split())
    if not prompt or not prompt.isprintable():
        raise DiffalignError("write what the pictures shall show, such as: red apple.")
    if len(prompt) > PROMPT_LENGTH:
        raise DiffalignError(f"this prompt has {len(prompt)} characters; {PROMPT_LENGTH} are allowed.")
    return prompt
