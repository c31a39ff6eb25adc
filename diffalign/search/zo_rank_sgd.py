"""ZO-RankSGD: climbing with nothing but rankings, by a reward or by a person.

Tang et al. 2024 (arXiv 2303.03751). Dimensions: P prompts, M candidates shown at once, S candidates so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from diffalign.bounds import Above0, Positive
from diffalign.errors import DiffalignError
from diffalign.policy import Policy
from diffalign.search import Found, Search, Task
from diffalign.steps import ODE, StepRule

Stage = Literal["queries", "line"]


@dataclass(frozen=True)
class Shown:
    """What is to be ranked: candidates' noise and finished latents (P, M, ...).

    best: how many of each prompt's candidates to name, the best first; serial (P, M) numbers a prompt's
    candidates over all rounds; only the columns `fresh` were never shown before.
    """

    stage: Stage
    noise: Tensor
    latents: Tensor
    serial: Tensor
    fresh: list[int]
    best: int

    def only(self, places: Tensor) -> Shown:
        """The candidates at these places (P, C) alone, as known ones."""
        row = torch.arange(len(places))[:, None]
        at = row.to(self.noise.device), places.to(self.noise.device)
        return replace(
            self, noise=self.noise[at], latents=self.latents[at], serial=self.serial[row, places], fresh=[]
        )

    def beside(self, other: Shown) -> Shown:
        """These candidates, then others."""
        return replace(
            other,
            noise=torch.cat([self.noise, other.noise], 1),
            latents=torch.cat([self.latents, other.latents], 1),
            serial=torch.cat([self.serial, other.serial], 1),
            fresh=self.fresh + [self.serial.shape[1] + place for place in other.fresh],
        )


class Oracle(Protocol):
    """Whoever ranks."""

    def __call__(self, shown: Shown) -> Tensor:
        """The places among the M candidates of each prompt's best ones, best first, (P, shown.best)."""
        ...


@dataclass
class ZORankSGD(Search):
    """Gradient steps on the initial noise from rankings of random queries, and a line search by ranking.

    queries: m candidates in a ranking, at least 3; top: how many of them the oracle puts in order.
    radius: distance of the queries from the current noise, in standard deviations of each number of it.
    step: the longest step of the line search along the direction, which is then halved m - 3 times.
    compat: weigh ranks as the official code does, whose weights do not add up to 0.
    A round costs 2 m - 2 rollouts: m queries and m - 2 steps; all samples of a prompt share the noise of
    the denoising steps, if those have any.
    """

    rounds: Positive = 8
    queries: Positive = 8
    top: Positive = 4
    radius: Above0 = 0.3
    step: Above0 = 1.0
    compat: bool = False

    def default_rule(self, policy: Policy) -> StepRule:
        """Without noise in the steps: the initial noise alone decides."""
        return ODE()

    def check(self, task: Task) -> None:
        """A ranking needs something to rank."""
        if not 3 <= self.queries >= self.top:
            raise DiffalignError(
                f"queries = {self.queries} and top = {self.top}: a round needs at least 3 queries, and puts no more "
                "of them in order than there are."
            )

    def search(self, task: Task) -> Found:
        """See Search; the reward ranks. The extras hold where each climb ended and how often it moved."""
        climb = Climb(self, task)
        judge = Judge(task, climb)
        for _ in range(2 * self.rounds):
            climb.tell(judge(climb.propose()))
        return task.found(climb.extras())

    def ask(self, task: Task, oracle: Oracle) -> Found:
        """The same with another oracle, such as a person; "total" counts how often it preferred a candidate.

        The task's reward is not asked. Who cannot wait in a call drives a Climb instead.
        """
        self.check(task)
        climb = Climb(self, task)
        for half in range(2 * self.rounds + 1):
            if half % 2 == 0:
                task.offer(task.everyone, climb.latents, climb.noise, {"total": climb.moves.float()})
            if half < 2 * self.rounds:
                climb.tell(oracle(climb.propose()))
        return task.found(climb.extras())


class Climb:
    """A search that waits for its oracle: `propose` what to rank, `tell` the order, as often as one likes.

    noise and latents (P, ...) are where each prompt is now, noise in float32; moves (P,) counts how often
    it went on. `direction` (P, ...) is the sum of `tries` (P,) directions estimated since then.
    """

    def __init__(self, method: ZORankSGD, task: Task) -> None:
        self.method, self.task, first = method, task, torch.zeros_like(task.everyone)
        self.seeds = task.seeds("steps", task.everyone, first)
        self.noise = task.noise(task.everyone, first).float()
        self.latents = self._finished(self.noise[:, None])[:, 0]
        self.serial, self.count, self.drawn, self.moves = first, 1, 1, first
        self.direction, self.tries = torch.zeros_like(self.noise), torch.zeros_like(first)
        self.shown: Shown | None = None
        self.best: Shown | None = None

    def propose(self) -> Shown:
        """What to rank next; the same until it was told."""
        if self.shown is None:
            self.shown = self._queries() if self.best is None else self._line(self.best)
        return self.shown

    def tell(self, order: Tensor) -> None:
        """The places (P, best) of the best of what was proposed, best first."""
        shown, order = self.propose(), torch.as_tensor(order).cpu().long()
        _check(order, shown)
        if shown.stage == "queries":
            self._learn(shown, order)
        else:
            self._move(shown, order[:, 0])
        self.shown = None

    def extras(self) -> list[dict[str, object]]:
        """Where each prompt ended, and after how many moves."""
        each = zip(self.noise, self.latents, self.moves.tolist(), strict=True)
        return [{"noise": noise, "latents": latents, "moves": moves} for noise, latents, moves in each]

    def _queries(self) -> Shown:
        """Random steps from where we are."""
        count = self.method.queries
        owner = self.task.everyone.repeat_interleave(count)
        member = self.drawn + torch.arange(count).repeat(len(self.task.prompts))
        self.drawn += count
        away = _grouped(self.task.noise(owner, member).float(), count)
        return self._show("queries", self.noise[:, None] + self.method.radius * away, self.method.top)

    def _learn(self, shown: Shown, order: Tensor) -> None:
        """Add the direction that the ranking of queries points to; remember the best query."""
        weights = rank_weights(shown.noise.shape[1], order.shape[1], self.method.compat)
        own = (
            weights[-1]
            .expand(shown.noise.shape[:2])
            .scatter(1, order, weights[: order.shape[1]].expand(order.shape))
        )
        away = (shown.noise - self.noise[:, None]) / self.method.radius
        self.direction = self.direction + torch.einsum("pm,pm...->p...", own.to(away), away)
        self.tries = self.tries + 1
        self.best = shown.only(order[:, :1])

    def _line(self, best: Shown) -> Shown:
        """Steps along the direction, each half the one before, beside where we are and the best query."""
        along = self.direction / _wide(self.tries, self.direction)
        steps = self.method.step * 0.5 ** torch.arange(self.method.queries - 2)
        ahead = self._show("line", self.noise[:, None] + _wide(steps, self.noise) * along[:, None], 1)
        here = Shown("line", self.noise[:, None], self.latents[:, None], self.serial[:, None], [], 1)
        return here.beside(best).beside(ahead)

    def _move(self, shown: Shown, pick: Tensor) -> None:
        """Go to the candidates picked; who stays keeps its direction, and averages the next one into it."""
        chosen, moved = shown.only(pick[:, None]), pick > 0
        self.noise, self.latents, self.serial = chosen.noise[:, 0], chosen.latents[:, 0], chosen.serial[:, 0]
        self.moves = self.moves + moved.long()
        self.direction = self.direction.where(_wide(~moved, self.direction), 0.0)
        self.tries, self.best = self.tries.where(~moved, 0), None

    def _show(self, stage: Stage, noise: Tensor, best: int) -> Shown:
        """Candidates that are denoised and numbered for it."""
        size = noise.shape[1]
        serial = (self.count + torch.arange(size)).expand(len(noise), size)
        self.count += size
        return Shown(stage, noise, self._finished(noise), serial, list(range(size)), best)

    def _finished(self, noise: Tensor) -> Tensor:
        """Finished latents (P, M, ...) of noise (P, M, ...)."""
        size = noise.shape[1]
        owner = self.task.everyone.repeat_interleave(size)
        start = noise.flatten(0, 1).to(self.task.policy.dtype)
        seeds = [seed for seed in self.seeds for _ in range(size)]
        return _grouped(self.task.sample(start, owner, seeds), size)


class Judge:
    """A task's reward as an oracle that scores no candidate twice; totals (P, S) of all candidates so far."""

    def __init__(self, task: Task, climb: Climb) -> None:
        self.task, self.totals = task, torch.empty(len(task.prompts), 0)
        here = Shown("line", climb.noise[:, None], climb.latents[:, None], climb.serial[:, None], [0], 1)
        self(here)

    def __call__(self, shown: Shown) -> Tensor:
        """See Oracle; of equals the first."""
        owner = self.task.everyone.repeat_interleave(len(shown.fresh))
        noise, latents = (
            shown.noise[:, shown.fresh].flatten(0, 1),
            shown.latents[:, shown.fresh].flatten(0, 1),
        )
        scores = self.task.score(latents, owner)
        self.task.offer(owner, latents, noise, scores)
        self.totals = torch.cat([self.totals, _grouped(scores["total"], len(shown.fresh))], 1)
        order = self.totals.gather(1, shown.serial).argsort(dim=1, descending=True, stable=True)
        return order[:, : shown.best]


def rank_weights(count: int, top: int, compat: bool = False) -> Tensor:
    """Weights (top + 1,) of the ranks 0 ... top - 1 and of what was not ranked, in a direction.

    The direction is the mean of (better - worse) over all pairs that a ranking of the best `top` of
    `count` decides: rank q wins count - 1 - q of its pairs and loses q, and who is not ranked loses to
    all of the best. Over all candidates the weights add up to 0. compat: count - 2 q, as the official
    code has it, which adds a drift along the mean of the best.
    """
    pairs = top * (top - 1) / 2 + top * (count - top)
    ranked = count - (0 if compat else 1) - 2 * torch.arange(top)
    return torch.cat([ranked, torch.tensor([-top])]) / pairs


def _grouped(values: Tensor, size: int) -> Tensor:
    """(P size, ...) -> (P, size, ...)."""
    return values.reshape(-1, size, *values.shape[1:])


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) with the device of `like` and one axis for each of its axes after the first."""
    return values.to(like.device).reshape(-1, *[1] * (like.dim() - 1))


def _check(order: Tensor, shown: Shown) -> None:
    prompts, count = shown.serial.shape
    whole = order.shape == (prompts, shown.best) and bool(((order >= 0) & (order < count)).all())
    if not whole or any(len(set(row)) < len(row) for row in order.tolist()):
        raise DiffalignError(
            f"the order {order.tolist()} does not name the best {shown.best} of {count} candidates for each of "
            f"{prompts} prompt(s): give different places from 0 to {count - 1}, the best first."
        )
