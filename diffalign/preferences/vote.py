"""One vote: who, what was shown in which order, what was chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import Literal

from diffalign.errors import DiffalignError

Kind = Literal["pair", "ranking"]
Choice = str | list[str]
"""Of a pair: "a" (the first shown), "b", "tie" or "both_bad". Of a ranking: picture ids, best first."""

OF_A_PAIR = ("a", "b", "tie", "both_bad")


@dataclass(frozen=True)
class Vote:
    """A vote that stands: `pictures` in the order shown, `models` beside them, `seconds` it took.

    showing: the id of the event that showed the pictures; version: diffalign's, when it was cast.
    """

    id: int
    showing: int
    user: str
    prompt: str
    kind: Kind
    pictures: tuple[str, ...]
    models: tuple[str, ...]
    choice: Choice
    seconds: float | None
    time: datetime
    version: str

    def pairs(self) -> list[tuple[str, str]]:
        """(winner, loser) picture ids: none of a tie or of both bad, all that a ranking implies."""
        match self.choice:
            case "a":
                return [(self.pictures[0], self.pictures[1])]
            case "b":
                return [(self.pictures[1], self.pictures[0])]
            case str():
                return []
        return _implied(self.choice, self.pictures)

    def compared(self) -> list[tuple[str, str, float]]:
        """(picture, other picture, 1 if the first won, 0.5 for a tie or both bad) of all that was compared."""
        if self.choice in ("tie", "both_bad"):
            return [(self.pictures[0], self.pictures[1], 0.5)]
        return [(winner, loser, 1.0) for winner, loser in self.pairs()]

    def model_of(self, picture: str) -> str:
        """The model that made one of the pictures."""
        return self.models[self.pictures.index(picture)]


def _implied(ranked: Sequence[str], pictures: Sequence[str]) -> list[tuple[str, str]]:
    """A ranked picture is better than those ranked after it and than all that were left out."""
    rest = [picture for picture in pictures if picture not in ranked]
    ordered = [(ranked[i], later) for i in range(len(ranked)) for later in ranked[i + 1 :]]
    return ordered + list(product(ranked, rest))


def check_choice(choice: Choice | Sequence[str], kind: Kind, pictures: Sequence[str]) -> Choice:
    """The choice as it is stored, or an error that says what may be chosen."""
    if kind == "pair":
        if not isinstance(choice, str) or choice not in OF_A_PAIR:
            raise DiffalignError(f"the choice of a pair is one of {', '.join(OF_A_PAIR)}, not {choice!r}.")
        return choice
    ranked = [choice] if isinstance(choice, str) else list(choice)
    if not ranked or len(set(ranked)) < len(ranked) or not set(ranked) <= set(pictures):
        raise DiffalignError(
            f"a ranking is a list of the ids of pictures that were shown, best first, each once, not {choice!r}. "
            f"Shown were {', '.join(pictures)}."
        )
    return ranked


def check_shown(pictures: Sequence[str], kind: Kind) -> None:
    """Raise unless these pictures can be shown together: two different ones, or more to rank."""
    if kind not in ("pair", "ranking"):
        raise DiffalignError(f"a showing is a 'pair' or a 'ranking', not {kind!r}.")
    wrong = len(pictures) != 2 if kind == "pair" else len(pictures) < 2
    if wrong or len(set(pictures)) < len(pictures):
        raise DiffalignError(
            f"a pair is two different pictures and a ranking two or more, not {len(set(pictures))} different of "
            f"{len(pictures)}."
        )


def check_seconds(seconds: float | None) -> float | None:
    """A response time, or an error where it is none."""
    if seconds is not None and not 0 <= seconds < math.inf:
        raise DiffalignError(f"a response time is a number of seconds, 0 or more, not {seconds!r}.")
    return seconds


def check_text(text: str, what: str) -> str:
    """The text, or an error where a database could not keep it."""
    if not isinstance(text, str) or not text or "\0" in text or not _encodes(text):
        raise DiffalignError(f"{what} is text in Unicode, not empty and without NUL, not {text!r}.")
    return text


def _encodes(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False
