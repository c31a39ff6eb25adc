"""How the scores of several rewards become one number: pure functions, one small class each.

Dimensions: B pictures, k rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Problem = tuple[str, str]
"""(key below `combine`, message)."""


@dataclass(frozen=True)
class Members:
    """What is combined: scores (B,) and weights by label.

    levels (B,): for combiners that ask for them, how high the untuned model gets for each picture's
    prompt, on the scale of the scores. unit turns a raw score of a reward into that scale.
    """

    scores: Mapping[str, Tensor]
    weights: Mapping[str, float]
    levels: Mapping[str, Tensor] = field(default_factory=dict)
    unit: Callable[[str, float], float] = lambda label, raw: raw

    @property
    def stacked(self) -> Tensor:
        """The scores as (k, B)."""
        return torch.stack(list(self.scores.values()))


@dataclass(frozen=True)
class Levels:
    """The reference level of a prompt: this quantile of so many base pictures of it."""

    quantile: float
    pictures: int


class Combiner:
    """Maps the scores of k rewards (B,) to one (B,); what a combiner needs is said in class variables.

    weighted: reads the weights. one_scale: compares rewards, which must be on one scale. absolute: uses
    the size of a score, which standardising within a prompt's pictures takes away. least: the smallest k.
    """

    weighted: ClassVar[bool] = False
    one_scale: ClassVar[bool] = False
    absolute: ClassVar[bool] = False
    least: ClassVar[int] = 1

    def __call__(self, members: Members) -> Tensor:
        """The combined score (B,)."""
        raise NotImplementedError

    @property
    def levels(self) -> Levels | None:
        """The reference levels it needs, if any."""
        return None

    def problems(self, weights: Mapping[str, float]) -> Iterator[Problem]:
        """What does not fit between this combiner and the rewards with these weights."""
        if len(weights) < self.least:
            yield "name", f"needs {self.least} rewards or more, and `rewards` has {len(weights)}"
        idle = [label for label, weight in weights.items() if weight != 1 and not self.weighted]
        if idle:
            yield "name", f"does not read weights; take the weight of {', '.join(idle)} out of `rewards`"

    def observe(self, means: Mapping[str, float], unit: Callable[[str, float], float]) -> None:
        """Hear of a training round's mean scores, on the combined scale; most combiners do not care."""

    def row(self) -> dict[str, float]:
        """What a round logs of the combiner's own state."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


@dataclass(frozen=True)
class WeightedSum(Combiner):
    """Σ w_i r_i."""

    weighted: ClassVar[bool] = True

    def __call__(self, members: Members) -> Tensor:
        """The weighted sum (B,)."""
        terms = [members.weights[label] * score for label, score in members.scores.items()]
        return torch.stack(terms).sum(0)


@dataclass(frozen=True)
class Mean(Combiner):
    """(1/k) Σ r_i: the mean of an ensemble (Coste et al. 2023, arXiv 2310.02743)."""

    one_scale: ClassVar[bool] = True

    def __call__(self, members: Members) -> Tensor:
        """The mean (B,)."""
        return members.stacked.mean(0)


@dataclass(frozen=True)
class Min(Combiner):
    """min_i r_i: worst-case optimisation, WCO (Coste et al. 2023, arXiv 2310.02743)."""

    one_scale: ClassVar[bool] = True

    def __call__(self, members: Members) -> Tensor:
        """The lowest score (B,); the gradient goes to the reward that gave it."""
        return members.stacked.amin(0)


@dataclass(frozen=True)
class Median(Combiner):
    """The middle score, or halfway between the middle two (Eisenstein et al. 2023, arXiv 2312.09244)."""

    one_scale: ClassVar[bool] = True

    def __call__(self, members: Members) -> Tensor:
        """The median (B,)."""
        return members.stacked.quantile(0.5, dim=0)


@dataclass(frozen=True)
class MeanMinusVariance(Combiner):
    """mean_i r_i − λ Var_i r_i: uncertainty-weighted optimisation, UWO (Coste et al. 2023, arXiv 2310.02743).

    penalty is λ, per unit of score; Var is the sample variance, over k − 1.
    """

    one_scale: ClassVar[bool] = True
    least: ClassVar[int] = 2
    penalty: float = 0.5

    def __call__(self, members: Members) -> Tensor:
        """Mean minus λ times the variance (B,)."""
        return members.stacked.mean(0) - self.penalty * members.stacked.var(0)


@dataclass(frozen=True)
class MeanMinusStd(Combiner):
    """mean_i r_i − c std_i r_i (Eisenstein et al. 2023, arXiv 2312.09244).

    penalty is c, without unit; std is the sample's, over k − 1.
    """

    one_scale: ClassVar[bool] = True
    least: ClassVar[int] = 2
    penalty: float = 1.0

    def __call__(self, members: Members) -> Tensor:
        """Mean minus c times the standard deviation (B,)."""
        return members.stacked.mean(0) - self.penalty * members.stacked.std(0)


@dataclass(frozen=True)
class LogSigmoid(Combiner):
    """Σ w_i log σ(r_i − r_i^ref(prompt)): the log-probability of "good in all" (Wang et al. 2024, arXiv 2402.00742).

    r_i^ref is the `quantile` of `pictures` base pictures of the prompt: below it every reward pulls
    with slope 1, above it a reward has had enough.
    """

    weighted: ClassVar[bool] = True
    absolute: ClassVar[bool] = True
    quantile: float = 0.85
    pictures: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1 or self.pictures < 2:
            raise ValueError(
                f"quantile = {self.quantile} must lie in [0, 1], and pictures = {self.pictures} be 2 or more"
            )

    @property
    def levels(self) -> Levels:
        """The quantile of so many base pictures of each prompt."""
        return Levels(self.quantile, self.pictures)

    def __call__(self, members: Members) -> Tensor:
        """The weighted sum of log σ(r − level), (B,), at most 0."""
        terms = [
            members.weights[label] * logsigmoid(score - members.levels[label])
            for label, score in members.scores.items()
        ]
        return torch.stack(terms).sum(0)
