"""Training from people's votes: a run whose batches are stored pictures of which people preferred one.

Dimensions: K pairs of a round, of all processes; B = 2 K' rows, K' of them this process's own.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from diffalign.errors import DiffalignError
from diffalign.folders.saving import write_text
from diffalign.preferences import Store
from diffalign.preferences.vote import Vote
from diffalign.run import Run
from diffalign.seeds import generator
from diffalign.training.live import Live
from diffalign.trajectory import Trajectory

Voters = Mapping[str, float]
"""User -> weight; users that are not named do not count. Empty: everybody counts alike."""


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt by their ids, of which somebody preferred one; weight: how much that counts."""

    winner: str
    loser: str
    weight: float = 1.0


class Source(Protocol):
    """Where the pairs of a round come from."""

    def __call__(self, run: Voted) -> list[Pair]:
        """The pairs of this round, the same on every process."""
        ...

    def describe(self, run: Voted) -> str:
        """Where they come from, in words."""
        ...


@dataclass
class Voted(Run):
    """A run that samples nothing: it reads how the pictures of votes were sampled."""

    store: Store = field(kw_only=True)
    source: Source = field(kw_only=True)

    def describe(self) -> str:
        """What a round is made of, and how many votes there are."""
        return f"{super().describe()}\n{self.source.describe(self)}"

    def sample(self, *, share_noise: bool = True) -> Trajectory:
        """This process's pairs of the round, a group each: the winner, whose total is 1, then the loser, 0."""
        with self.metrics.timed("sample"):
            pairs, own = self.source(self), torch.tensor(self.own_groups())
            ids = [name for g in own.tolist() for name in (pairs[g].winner, pairs[g].loser)]
            batch = Trajectory.cat([self.store.pictures.trajectory(name) for name in ids])
        batch.group = own.repeat_interleave(2)
        batch.rewards = {"total": torch.tensor([1.0, 0.0]).repeat(len(own))}
        with self.metrics.timed("kl"):
            self.metrics.add("kl", self.kl(batch))
        return batch


@dataclass
class Stored:
    """Passes over stored votes: permutations of the pairs, or draws by their weights. without: what is left out."""

    pairs: Sequence[Pair]
    without: Sequence[str] = ()

    def describe(self, run: Voted) -> str:
        """See Source."""
        passes = f"{len(self.pairs)} preference(s), of which a round takes {run.batching.prompts_per_round}"
        return "; ".join([passes, *(f"left out: {reason}" for reason in self.without)])

    def __call__(self, run: Voted) -> list[Pair]:
        """See Source."""
        k, size = run.batching.prompts_per_round, len(self.pairs)
        places = [divmod(run.round * k + g, size) for g in range(k)]
        orders = {epoch: self._order(run.seed, epoch) for epoch in {epoch for epoch, _ in places}}
        return [self.pairs[orders[epoch][place]] for epoch, place in places]

    def _order(self, seed: int, epoch: int) -> list[int]:
        weight = torch.tensor([pair.weight for pair in self.pairs], dtype=torch.float64)
        dice, alike = generator(seed, "votes", epoch), bool((weight == weight[0]).all())
        order: list[int] = torch.multinomial(
            weight, len(weight), replacement=not alike, generator=dice
        ).tolist()
        return order


@dataclass
class Awaited:
    """Rounds with people: show the model as it is, wait until its pictures were voted on, learn from that.

    model: its name, with which labels begin. votes: those that stand on the pictures of a label.
    """

    live: Live
    model: str
    votes: Callable[[str], list[Pair]]
    pause: float = 1.0

    def describe(self, run: Voted) -> str:
        """See Source."""
        return f"every round waits for {run.batching.prompts_per_round} preference(s) on what the last one learned"

    def __call__(self, run: Voted) -> list[Pair]:
        """See Source; Ctrl-C ends it, as this round has nothing yet that could be finished."""
        found = [self._wait(run) if run.accelerator.is_main_process else None]
        if run.accelerator.num_processes > 1:
            broadcast_object_list(found)
        if found[0] is None:
            raise KeyboardInterrupt
        return found[0]

    def _wait(self, run: Voted) -> list[Pair] | None:
        label = "+".join(filter(None, (self.model, run.policy.version)))
        needed, seen = run.batching.prompts_per_round, 0
        self.live.show(run)
        with self.live.waiting() as sign:
            while len(pairs := self.votes(label)) < needed:
                if run.interrupted():
                    return None
                run.advance("waiting for votes", len(pairs) - seen)
                seen = len(pairs)
                sign.touch()
                time.sleep(self.pause)
        return pairs[:needed]


@dataclass(frozen=True)
class Ballots:
    """Which votes of a store a run learns from: those on one model's pictures, by these voters.

    without: prompts that are held out. Pictures of a model are those whose label begins with its name.
    """

    store: Store
    model: str
    voters: Voters = field(default_factory=dict)
    without: Collection[str] = ()
    _known: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def pairs(self, label: str | None = None) -> list[Pair]:
        """All decided pairs, in the order of the votes; label: on the pictures of this version alone."""
        return [pair for vote in self._votes() if not self._unfit(vote, label) for pair in self._of(vote)]

    def check(self) -> list[Pair]:
        """The pairs, or an error that says why there are none."""
        self._check_voters()
        if pairs := self.pairs():
            return pairs
        reasons = "; ".join(self.left_out()) or "nobody has voted yet"
        raise DiffalignError(
            f"no vote in {self.store.database.name} can be learned from: {reasons}. Collect votes with "
            f"`diffalign demo --model {self.model} --votes {self.store.database.name}`."
        )

    def left_out(self) -> Iterator[str]:
        """In words, how many votes are not learned from, and why."""
        reasons = Counter(self._unfit(vote, None) or self._undecided(vote) for vote in self._votes())
        yield from (f"{count} vote(s) {why}" for why, count in reasons.items() if why)

    def _votes(self) -> list[Vote]:
        return self.store.votes(users=self.voters or None)

    def _of(self, vote: Vote) -> Iterator[Pair]:
        weight = self.voters.get(vote.user, 1.0)
        yield from (Pair(winner, loser, weight) for winner, loser in vote.pairs() if weight)

    def _unfit(self, vote: Vote, label: str | None) -> str | None:
        """Why a vote cannot be learned from, if so."""
        if label is not None and set(vote.models) != {label}:
            return "on other versions of the model"
        if any(name.split("+")[0] != self.model for name in vote.models):
            return f"on pictures of other models than {self.model}"
        if vote.prompt in self.without:
            return "on held-out prompts"
        if not all(self._sampled(name) for name in vote.pictures):
            return "on pictures without a trajectory, which D3PO needs (made to judge models, or elsewhere)"
        return None

    def _sampled(self, picture: str) -> bool:
        """Whether it is known how a picture was sampled; read once, as what has an id never changes."""
        if picture not in self._known:
            self._known[picture] = self.store.pictures.info(picture).trajectory is not None
        return self._known[picture]

    def _undecided(self, vote: Vote) -> str | None:
        if self.voters.get(vote.user, 1.0) == 0:
            return "by voters whose weight is 0"
        return None if vote.pairs() else "that chose neither picture"

    def _check_voters(self) -> None:
        known = {vote.user for vote in self.store.votes()}
        if unknown := sorted(self.voters.keys() - known):
            raise DiffalignError(
                f"{', '.join(unknown)} never voted in {self.store.database.name}; those who did: "
                f"{', '.join(sorted(known)) or 'nobody'}."
            )


def fixed(ballots: Ballots, path: Path, accelerator: Accelerator) -> list[Pair]:
    """The pairs as they were when the run began, the same on every process and after a kill; kept in a file."""
    if accelerator.is_main_process and not path.exists():
        write_text(path, json.dumps([asdict(pair) for pair in ballots.check()], indent=1))
    accelerator.wait_for_everyone()
    return [Pair(**pair) for pair in json.loads(path.read_text(encoding="utf-8"))]
