"""ZO-RankSGD with a person as its oracle: rounds of pictures to put in order, until one of them is liked.

Dimensions: M pictures shown.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.preferences import Store
from diffalign.rewarding.compose import Composite
from diffalign.search import Task
from diffalign.search.zo_rank_sgd import Climb, ZORankSGD
from diffalign_demo.app.artist import Artist

REMEMBERED = 50
"""Climbs that are kept, the latest; older ones begin anew."""


@dataclass
class Ascent:
    """A user's climb: what is shown now, under which ids, and in which round."""

    prompt: str
    name: str
    climb: Climb
    round: int = 0
    showing: int = 0
    pictures: list[str] = field(default_factory=list)
    place: dict[str, int] = field(default_factory=dict)
    since: float = 0.0

    @property
    def best(self) -> int:
        """How many of the pictures are to be put in order."""
        return min(self.climb.propose().best, len(self.pictures))

    @property
    def stage(self) -> str:
        """ "queries": which directions are better; "line": how far to go."""
        return self.climb.propose().stage


class Ranking:
    """Every user's climb; all that is shown and ranked goes into the store."""

    def __init__(self, store: Store, artist: Artist) -> None:
        self.store, self.artist = store, artist
        self._climbs: OrderedDict[str, Ascent] = OrderedDict()

    def of(self, user: str) -> Ascent | None:
        """The user's climb, where there is one."""
        return self._climbs.get(user)

    def start(self, user: str, prompt: str, queries: int, top: int) -> Ascent:
        """Begin anew with a prompt: `top` of `queries` pictures are put in order."""
        method = ZORankSGD(queries=queries, top=top)
        with self.artist.turns:
            policy, nothing = self.artist.policy, Composite({})
            policy.check_prompts([prompt])
            task = Task(
                policy, nothing, [prompt], method.default_rule(policy), seed=secrets.randbits(62), batch=8
            )
            method.check(task)
            ascent = Ascent(prompt, self.artist.name, Climb(method, task))
        self._climbs.pop(user, None)
        self._climbs[user] = ascent
        while len(self._climbs) > REMEMBERED:
            self._climbs.popitem(last=False)
        return self._show(user, ascent)

    def tell(self, user: str, showing: int, order: Sequence[str]) -> Ascent:
        """Go on from the user's order of the best pictures, best first; sent twice, it counts once."""
        ascent = self._climbs.get(user)
        if ascent is None:
            raise DiffalignError("this ranking was put away; start it again.")
        if showing != ascent.showing:
            return ascent
        if len(order) != ascent.best or not set(order) <= set(ascent.place):
            raise DiffalignError(f"choose {ascent.best} picture(s) first, the best one first.")
        self.store.vote(
            showing, user, list(order), seconds=time.monotonic() - ascent.since, token=f"rank-{showing}"
        )
        with self.artist.turns:
            ascent.climb.tell(torch.tensor([[ascent.place[picture] for picture in order]]))
        return self._show(user, ascent)

    def here(self, user: str) -> Tensor:
        """The picture (3, H, W) that the climb has reached."""
        ascent = self._climbs[user]
        with self.artist.turns, torch.no_grad():
            return self.artist.policy.decode(ascent.climb.latents)[0].cpu()

    def end(self, user: str) -> None:
        """Put the user's climb away."""
        self._climbs.pop(user, None)

    def _show(self, user: str, ascent: Ascent) -> Ascent:
        """Draw the next round; pictures that look the same to the last bit are shown once."""
        with self.artist.turns, torch.no_grad():
            images = self.artist.policy.decode(ascent.climb.propose().latents[0]).cpu().clamp(0, 1)
        kept = [self.store.pictures.add(image, prompt=ascent.prompt, model=ascent.name) for image in images]
        ascent.place = {picture: place for place, picture in reversed(list(enumerate(kept)))}
        ascent.pictures = list(dict.fromkeys(kept))
        ascent.showing = self.store.show(user, ascent.pictures, kind="ranking")
        ascent.round, ascent.since = ascent.round + 1, time.monotonic()
        return ascent
