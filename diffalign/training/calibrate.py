"""What the untuned model scores, measured when a composition first asks and remembered with the run.

Dimensions: N pictures of the training prompts, K of one prompt.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.folders.folder import Folder
from diffalign.rewarding.combine import Levels
from diffalign.rewarding.compose import Base
from diffalign.run import Run
from diffalign.seeds import derive, generator
from diffalign.walk import rollout

logger = logging.getLogger(__name__)
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass
class Calibrator:
    """Answers `Composite.base`: statistics of N base pictures, and levels of the prompts asked.

    Seeds belong to the run and to a prompt, so every process and every resumed run finds the same
    numbers; calibration.json keeps them, and is not believed if `identity` (the config) has changed.
    Every process has to ask at the same points of a run.
    """

    run: Run
    folder: Folder
    pictures: int = 64
    identity: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, dict[str, float]] = field(init=False, default_factory=dict)
    levels: dict[str, dict[str, float]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        saved = self.folder.calibration()
        if saved and saved["identity"] == _plain(self.identity):
            self.statistics, self.levels = saved["statistics"], saved["levels"]

    def __call__(self, prompts: Sequence[str]) -> Base:
        """What is known of the base model; measured now where it is not yet."""
        composite = self.run.reward
        if composite.wants_statistics and not self.statistics:
            self.statistics = self._measure_statistics()
            self._save()
        if composite.combiner.levels:
            self._meet(composite.combiner.levels, prompts)
        mean, std = ({k: s[name] for k, s in self.statistics.items()} for name in ("mean", "std"))
        return Base(mean, std, self._levels_of(prompts) if composite.combiner.levels else {})

    def _levels_of(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        known = [self.levels[prompt] for prompt in prompts]
        return {label: torch.tensor([one[label] for one in known]) for label in self.run.reward.rewards}

    def _measure_statistics(self) -> dict[str, dict[str, float]]:
        """Mean, standard deviation and quantiles of each reward over N base pictures of the training prompts."""
        each = self.run.batching.images_per_prompt if self.run.reward.compares else 1
        chosen = self._training_prompts(-(-self.pictures // each))
        seeds = [derive(self.run.seed, "calibration", k) for k in range(len(chosen) * each)]
        return {label: _statistics(label, v) for label, v in self._gathered(chosen, each, seeds).items()}

    def _training_prompts(self, count: int) -> list[str]:
        """The first prompts of a shuffled list, over and over."""
        every = self.run.prompts
        order = torch.randperm(len(every), generator=generator(self.run.seed, "calibration")).tolist()
        return [every[order[k % len(order)]] for k in range(count)]

    def _meet(self, levels: Levels, prompts: Sequence[str]) -> None:
        """Draw K base pictures of every prompt that some process meets for the first time."""
        asked: list[str] = gather_object(list(dict.fromkeys(prompts)))
        fresh = [prompt for prompt in dict.fromkeys(asked) if prompt not in self.levels]
        if not fresh:
            return
        each = levels.pictures
        seeds = [derive(self.run.seed, "level", prompt, k) for prompt in fresh for k in range(each)]
        scores = self._gathered(fresh, each, seeds)
        cut = {k: v.reshape(-1, each).quantile(levels.quantile, dim=1).tolist() for k, v in scores.items()}
        self.levels |= {p: {label: cut[label][k] for label in cut} for k, p in enumerate(fresh)}
        self._save()

    def _gathered(self, prompts: Sequence[str], each: int, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Every reward's scores of `each` base pictures of each prompt, in order; processes share the prompts."""
        run = self.run
        share = torch.arange(len(prompts)).tensor_split(run.accelerator.num_processes)
        own: dict[str, list[float]] = {label: [] for label in run.reward.rewards}
        with run.metrics.timed("calibrate"), run.policy.using("reference"):
            for some in share[run.accelerator.process_index].split(max(1, run.batching.sample_batch // each)):
                rows = [int(k) * each + place for k in some for place in range(each)]
                found = self._scores([prompts[r // each] for r in rows], each, [seeds[r] for r in rows])
                for label, values in found.items():
                    own[label] += values
        every: list[dict[str, list[float]]] = gather_object([own])
        return {
            label: torch.tensor([v for part in every for v in part[label]], dtype=torch.float64)
            for label in own
        }

    def _scores(self, prompts: Sequence[str], each: int, seeds: Sequence[int]) -> dict[str, list[float]]:
        if not prompts:
            return {}
        run = self.run
        batch = rollout(
            run.policy, run.rule, prompts, seeds, noise_seeds=[derive(seed, "noise") for seed in seeds],
            group=[row // each for row in range(len(prompts))], batch=run.batching.sample_batch,
            advance=lambda n: run.advance("calibrating", n),
        )  # fmt: skip
        parts = run.measure(batch.final, prompts, batch.group)
        return {label: parts[label].tolist() for label in run.reward.rewards}

    def _save(self) -> None:
        known = {"statistics": self.statistics, "levels": self.levels}
        if self.run.accelerator.is_main_process:
            self.folder.write_calibration(
                {"identity": _plain(self.identity), "pictures": self.pictures} | known
            )


def _plain(value: Any) -> Any:
    """What JSON makes of a value."""
    return json.loads(json.dumps(value))


def _statistics(label: str, values: Tensor) -> dict[str, float]:
    """Of values (N,) in float64; a reward that is the same for all of them keeps its unit."""
    if len(values) < 2:
        raise DiffalignError(
            f"{len(values)} picture(s) do not calibrate {label!r}; raise calibration_pictures."
        )
    spread = float(values.std(correction=0))
    if not spread:
        logger.warning(
            "reward %r is %g for all %d base pictures: nothing to scale by, its own unit is kept.",
            label, values[0].item(), len(values),
        )  # fmt: skip
    cuts = values.quantile(torch.tensor(QUANTILES, dtype=values.dtype)).tolist()
    named = {f"q{round(100 * q)}": cut for q, cut in zip(QUANTILES, cuts, strict=True)}
    return {"mean": float(values.mean()), "std": spread or 1.0, **named}
