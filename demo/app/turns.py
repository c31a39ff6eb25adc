"""A lock that is given to whoever has waited longest: Python's own lets one thread take it again and again."""

from __future__ import annotations

import itertools
import threading


class Turns:
    """Used as `with turns:`; threads go in the order in which they came. Not re-entrant."""

    def __init__(self) -> None:
        self._tickets, self._turn = itertools.count(), 0
        self._changed = threading.Condition()

    def __enter__(self) -> None:
        with self._changed:
            mine = next(self._tickets)
            self._changed.wait_for(lambda: self._turn == mine)

    def let(self) -> None:
        """Let those who wait go first, and come back."""
        self.__exit__()
        self.__enter__()

    def __exit__(self, *raised: object) -> None:
        with self._changed:
            self._turn += 1
            self._changed.notify_all()
