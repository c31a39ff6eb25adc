"""Constraints on rewards, kept by multipliers that rise while a constraint is violated.

Moskovitz et al. 2023 (arXiv 2310.04373): the maximum of E[r_0] subject to E[r_i] >= θ_i.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffalign.rewarding.combine import Combiner, Members, Problem

FORM = re.compile(r"\s*([\w-]+)\s*(>=|<=|==)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Constraint:
    """`label >= bound`, `<=` or `==`; the bound is in the reward's own unit."""

    label: str
    relation: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Read `emoji_clip >= 0.25`."""
        found = FORM.fullmatch(text)
        if not found:
            raise ValueError(
                f'{text!r} is not a constraint; write LABEL >= NUMBER (or <=, ==), such as "style >= 0.25"'
            )
        return cls(found[1], found[2], float(found[3]))

    def __str__(self) -> str:
        return f"{self.label} {self.relation} {self.bound:g}"

    @property
    def sign(self) -> int:
        """-1 where the reward must stay below its bound, else 1."""
        return -1 if self.relation == "<=" else 1

    def multiplier(self, dual: float, cap: float) -> float:
        """The multiplier of a dual variable: bounded, and of either sign for an equality."""
        return cap * math.tanh(dual / cap) if self.relation == "==" else dual

    def ascend(self, dual: float, slack: float, rate: float, cap: float) -> float:
        """One step up the dual: `[μ − rate · slack]` within [0, cap], or free where the equality bounds it."""
        moved = dual - rate * slack
        return moved if self.relation == "==" else min(max(moved, 0.0), cap)


@dataclass
class Lagrangian(Combiner):
    """Σ_j w_j r_j + Σ_i μ_i s_i (r_i − θ_i), s_i = −1 for `<=`; the first sum is over unconstrained rewards.

    After each round μ_i ← [μ_i − rate · s_i (Ē r_i − θ_i)] within [0, cap], where Ē is a running mean of
    the rounds' mean scores that keeps the share `memory` of its past; an equality's μ has either sign and
    is bounded by cap · tanh. rate: multiplier per unit of violation and round. start: μ before round 1.
    """

    weighted: ClassVar[bool] = True
    absolute: ClassVar[bool] = True

    constraints: list[str]
    rate: float = 0.1
    cap: float = 10.0
    memory: float = 0.5
    start: float = 0.0
    parsed: Sequence[Constraint] = field(init=False, repr=False)
    duals: dict[str, float] = field(init=False, repr=False)
    means: dict[str, float] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.constraints:
            raise ValueError("constraints is empty; write at least one, or use combine: sum")
        if self.rate <= 0 or self.cap <= 0 or not 0 <= self.memory < 1:
            raise ValueError(
                f"rate = {self.rate} and cap = {self.cap} must be above 0, and memory = {self.memory} in [0, 1)"
            )
        self.parsed = [Constraint.parse(text) for text in self.constraints]
        self.duals = {str(one): self.start for one in self.parsed}

    def problems(self, weights: Mapping[str, float]) -> Iterator[Problem]:
        """Constraints on rewards that are not there, weights that nothing reads, and no objective."""
        bound = {one.label for one in self.parsed}
        for label in sorted(bound - weights.keys()):
            yield "constraints", f"names {label!r}, which is not in `rewards`: {', '.join(weights)}"
        for label in sorted(bound & weights.keys()):
            if weights[label] != 1:
                yield "constraints", f"sets the multiplier of {label}; take its weight out of `rewards`"
        if weights.keys() <= bound:
            yield "constraints", "leaves no reward to maximise; add one that is not constrained to `rewards`"
        if len(self.duals) < len(self.parsed):
            yield "constraints", "holds the same constraint twice"

    @property
    def multipliers(self) -> dict[str, float]:
        """μ by constraint; a constraint that is satisfied with room to spare has 0."""
        return {str(one): one.multiplier(self.duals[str(one)], self.cap) for one in self.parsed}

    def __call__(self, members: Members) -> Tensor:
        """The Lagrangian (B,) at the multipliers of now."""
        bound, multipliers = {one.label for one in self.parsed}, self.multipliers
        terms = [members.weights[k] * score for k, score in members.scores.items() if k not in bound]
        for one in self.parsed:
            slack = members.scores[one.label] - members.unit(one.label, one.bound)
            terms.append(multipliers[str(one)] * one.sign * slack)
        return torch.stack(terms).sum(0)

    def observe(self, means: Mapping[str, float], unit: Callable[[str, float], float]) -> None:
        """Dual ascent on a round's mean scores, on the combined scale."""
        past, keep = self.means, self.memory
        self.means = {label: keep * past.get(label, now) + (1 - keep) * now for label, now in means.items()}
        for one in self.parsed:
            slack = one.sign * (self.means[one.label] - unit(one.label, one.bound))
            self.duals[str(one)] = one.ascend(self.duals[str(one)], slack, self.rate, self.cap)

    def row(self) -> dict[str, float]:
        """The multipliers."""
        return {f"multiplier/{name}": value for name, value in self.multipliers.items()}

    def state_dict(self) -> dict[str, Any]:
        """The dual variables and the running means."""
        return {"duals": dict(self.duals), "means": dict(self.means)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.duals, self.means = dict(state["duals"]), dict(state["means"])
