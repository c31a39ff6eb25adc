"""Several rewards as one. Measuring them (measure.py) and combining what was measured are two steps: pictures
are scored in chunks, while normalising needs all pictures of a prompt at once.

Dimensions: B pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from diffalign.credit import groups, standardize
from diffalign.errors import DiffalignError
from diffalign.reward import AnyReward, Scores, capability, kind
from diffalign.rewarding.combine import (
    Combiner,
    LogSigmoid,
    Mean,
    MeanMinusStd,
    MeanMinusVariance,
    Median,
    Members,
    Min,
    Problem,
    WeightedSum,
)
from diffalign.rewarding.lagrangian import Lagrangian
from diffalign.rewarding.measure import measure, prepare

COMBINERS: dict[str, type[Combiner]] = {
    "sum": WeightedSum,
    "mean": Mean,
    "min": Min,
    "median": Median,
    "mean_minus_variance": MeanMinusVariance,
    "mean_minus_std": MeanMinusStd,
    "log_sigmoid": LogSigmoid,
    "lagrangian": Lagrangian,
}

Normalize = Literal["none", "before", "after"]
TINY = 1e-6
"""What is added to a group's standard deviation, so that float noise is not blown up."""


@dataclass(frozen=True)
class Base:
    """What the untuned model scores: mean and std of each reward, and levels (B,) for the prompts asked."""

    mean: Mapping[str, float] = field(default_factory=dict)
    std: Mapping[str, float] = field(default_factory=dict)
    levels: Mapping[str, Tensor] = field(default_factory=dict)

    def scaled(self, label: str, value: Any) -> Any:
        """A score, or scores (B,), in standard deviations from the base model's mean."""
        return (value - self.mean[label]) / self.std[label]


@dataclass
class Composite:
    """Rewards by label, and how they become one.

    normalize: "before" standardises every reward within its prompt's pictures, then combines; "after"
    combines, then standardises; they are not equivalent. calibrate: rewards enter as z-scores of the
    base model. base(prompts) knows the base model's scores, where those are needed.
    """

    rewards: Mapping[str, AnyReward]
    weights: Mapping[str, float] = field(default_factory=dict)
    combiner: Combiner = field(default_factory=WeightedSum)
    normalize: Normalize = "none"
    calibrate: bool = False
    base: Callable[[Sequence[str]], Base] | None = None

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Scores:
        """The combined score (B,), not normalised within prompts, and the single rewards as parts."""
        parts = self.measure(images, prompts)
        return Scores(self.combine(parts, prompts), parts)

    def measure(
        self,
        images: Tensor,
        prompts: Sequence[str],
        group: Tensor | None = None,
        *,
        finite: bool = True,
    ) -> dict[str, Tensor]:
        """Every reward's own scores (B,) by label, and their parts as `label.part`; see `measure`."""
        return measure(self.rewards, images, prompts, group, finite=finite)

    def combine(
        self, parts: Mapping[str, Tensor], prompts: Sequence[str], group: Tensor | None = None
    ) -> Tensor:
        """The total (B,) of measured parts; `group` (B,) holds whole groups, and lets `normalize` act.

        Without groups (evaluation) there is nothing to normalise within, and "before" falls back on
        z-scores of the base model.
        """
        grouped = self.normalize if group is not None else "none"
        raw = {label: parts[label] for label in self.rewards}
        if grouped == "before":
            members = Members({k: within(v, group) for k, v in raw.items()}, self._weights)
        else:
            members = self._members(raw, prompts)
        total = self.combiner(members)
        return within(total, group) if grouped == "after" else total

    def observe(self, means: Mapping[str, float]) -> None:
        """Tell the combiner a training round's mean score of each reward, over all processes."""
        unit = self._unit(self._base([]))
        self.combiner.observe({label: unit(label, means[label]) for label in self.rewards}, unit)

    def _members(self, raw: Mapping[str, Tensor], prompts: Sequence[str]) -> Members:
        base = self._base(prompts)
        unit = self._unit(base)
        levels = {k: unit(k, v.to(raw[k])) for k, v in base.levels.items()}
        return Members({k: unit(k, v) for k, v in raw.items()}, self._weights, levels, unit)

    def _unit(self, base: Base) -> Callable[[str, Any], Any]:
        return base.scaled if self.wants_statistics else lambda label, value: value

    def _base(self, prompts: Sequence[str]) -> Base:
        if not (self.wants_statistics or self.combiner.levels):
            return Base()
        if self.base is None:
            raise DiffalignError(
                "this composition compares with the untuned model's scores, and nobody measured them: "
                "set Composite.base (diffalign.training.calibrate.Calibrator does it for a run)."
            )
        return self.base(prompts)

    @property
    def _weights(self) -> dict[str, float]:
        return {label: self.weights.get(label, 1.0) for label in self.rewards}

    @property
    def wants_statistics(self) -> bool:
        """Whether the base model's mean and standard deviation of each reward are needed."""
        return self.calibrate or self.normalize == "before"

    @property
    def compares(self) -> bool:
        """Whether a reward sees all pictures of a prompt together."""
        return any(kind(reward) == "group" for reward in self.rewards.values())

    @property
    def differentiable(self) -> bool:
        """All of them are."""
        return all(capability(reward, "differentiable") for reward in self.rewards.values())

    @property
    def video(self) -> bool:
        """All of them take video."""
        return all(capability(reward, "video") for reward in self.rewards.values())

    def prepare(self, prompts: Sequence[str]) -> None:
        """Let every reward that can prepare itself for these prompts."""
        prepare(self.rewards, prompts)


def composed(reward: AnyReward) -> Composite:
    """A reward as a composite of one, labelled `reward`; a composite as it is."""
    return reward if isinstance(reward, Composite) else Composite({"reward": reward})


def within(values: Tensor, group: Tensor | None) -> Tensor:
    """Values (B,) standardised within each group: the z-score among one prompt's pictures."""
    out = torch.zeros_like(values)
    for rows in groups(group) if group is not None else ():
        rows = rows.to(values.device)
        out = out.index_copy(0, rows, standardize(values[rows], TINY))
    return out


def problems(
    combiner: Combiner,
    named: Mapping[str, str],
    weights: Mapping[str, float],
    normalize: str,
    calibrate: bool,
) -> Iterator[Problem]:
    """What is wrong with a composition; `named` says which reward each label is."""
    yield from combiner.problems(weights)
    if combiner.one_scale and len(set(named.values())) > 1 and not calibrate and normalize != "before":
        yield (
            "name",
            f"compares the scores of {', '.join(named)}, which are on different scales; add `calibrate: true` "
            "(z-scores of the base model) or `normalize: before` (z-scores within each prompt)",
        )
    if combiner.absolute and normalize == "before":
        yield (
            "name",
            "compares scores with a level of their own, which `normalize: before` takes away; use "
            "`calibrate: true` to bring rewards to one scale, or `normalize: after`",
        )
