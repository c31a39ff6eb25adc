"""Held-out evaluation: the trained model against the untuned one, on the same prompts and seeds.

Dimensions: B held-out prompts, one picture each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.reward import AnyReward, kind, sharing
from diffalign.rewarding.measure import measure, measure_set, prepare
from diffalign.run import Run
from diffalign.seeds import derive, generator
from diffalign.walk import chunks, rollout

RESAMPLES = 10_000
Interval = tuple[float, float]


@dataclass(frozen=True)
class Sheet:
    """Pictures (B, ...) of the held-out prompts with every reward's own scores, (B,) by label.

    sets: the rewards that judge all pictures together, one number by label.
    """

    images: Tensor
    scores: Mapping[str, Tensor]
    sets: Mapping[str, float]
    diversity: float


def bootstrap(values: Tensor, seed: int = 0) -> Interval:
    """95 % percentile interval of the mean of values (B,)."""
    draw = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator(seed, "bootstrap"))
    low, high = (
        values.double()[draw].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    )
    return low, high


def gain(base: Tensor, trained: Tensor) -> tuple[float, Interval]:
    """Mean paired gain in standard deviations of the base model's scores, with its interval."""
    each = (trained - base).double() / base.double().std(correction=0).clamp_min(1e-12)
    return float(each.mean()), bootstrap(each)


def win_rate(base: Tensor, trained: Tensor) -> tuple[float, Interval]:
    """Share of prompts on which the trained model scores higher, ties counting half, with its interval."""
    wins = (trained > base).double() + 0.5 * (trained == base).double()
    return float(wins.mean()), bootstrap(wins)


def middle(images: Tensor) -> Tensor:
    """The pictures, or the middle frames of videos (B, F, 3, H, W)."""
    return images if images.ndim == 4 else images[:, images.shape[1] // 2]


def pairwise_distance(features: Tensor) -> float:
    """Mean cosine distance between the rows of features (B, E)."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    n = len(unit)
    return float(1 - ((unit @ unit.T).sum() - n) / max(n * (n - 1), 1))


@dataclass
class Evaluator:
    """Scores the policy on prompts no run trains on, from fixed seeds.

    rewards: label -> reward that is not trained on; those of the run are always scored as well. embed
    maps pictures (B, 3, H, W), of videos the middle frames, to features (B, E) for the diversity.
    """

    run: Run
    prompts: Sequence[str]
    rewards: Mapping[str, AnyReward]
    embed: Callable[[Tensor], Tensor] | None = None
    seed: int = 0
    base: Sheet | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if len(self.prompts) < self.run.accelerator.num_processes:
            raise DiffalignError(
                f"{len(self.prompts)} held-out prompt(s) cannot be shared by "
                f"{self.run.accelerator.num_processes} processes; give more of them."
            )

    def measure_base(self) -> Sheet:
        """Pictures and scores of the untuned model; kept, as every comparison needs them."""
        with self.run.policy.using("reference"):
            self.base = self.sheet()
        return self.base

    @torch.no_grad()
    def sheet(self) -> Sheet:
        """Pictures and scores of the policy as it is; every process draws and scores its share."""
        accelerator = self.run.accelerator
        share = [
            rows.tolist() for rows in torch.arange(len(self.prompts)).tensor_split(accelerator.num_processes)
        ]
        own, lengths = share[accelerator.process_index], [len(rows) for rows in share]
        with self.run.metrics.timed("evaluate"):
            drawn = self._pictures(own)
            scored = self._scored(drawn, [self.prompts[r] for r in own])
            images = _gather(self.run, drawn, lengths)
            scores = {label: _gather(self.run, values, lengths) for label, values in scored.items()}
            diversity = pairwise_distance(self.embed(middle(images))) if self.embed else float("nan")
            return Sheet(images, scores, self._sets(images), diversity)

    def _pictures(self, rows: Sequence[int]) -> Tensor:
        run = self.run
        batch = rollout(
            run.policy,
            run.rule,
            [self.prompts[r] for r in rows],
            [derive(self.seed, "steps", r) for r in rows],
            noise_seeds=[derive(self.seed, "noise", r) for r in rows],
            group=rows,
            batch=run.batching.sample_batch,
            advance=lambda n: run.advance("evaluating", n),
        )
        return run.decode(batch.final)

    def _scored(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Every reward once: those trained on and those that are not, (B,) by label."""
        rewards = {**self.run.reward.rewards, **self._of("picture", "group")}
        prepare(rewards, prompts)
        pieces = []
        for rows in chunks(len(images), self.run.batching.sample_batch):
            pieces.append(measure(rewards, images[rows], [prompts[r] for r in rows.tolist()], rows))
            self.run.reward_calls += len(rows) * len(rewards)
        return {label: torch.cat([piece[label] for piece in pieces]) for label in rewards}

    def _sets(self, images: Tensor) -> dict[str, float]:
        images = images.to(self.run.accelerator.device)
        with sharing():
            return {
                label: measure_set(r, images, self.prompts, label) for label, r in self._of("set").items()
            }

    def _of(self, *kinds: str) -> dict[str, AnyReward]:
        return {label: reward for label, reward in self.rewards.items() if kind(reward) in kinds}

    def total(self, scores: Mapping[str, Tensor]) -> Tensor:
        """The trained reward (B,) of measured scores, combined as training combines them now."""
        return self.run.reward.combine(scores, self.prompts)

    def better(self, scores: Mapping[str, Tensor], best: Mapping[str, Tensor]) -> bool:
        """Whether the trained reward of these scores is above that of the best so far."""
        return bool(self.total(scores).mean() > self.total(best).mean())

    def compare(self, sheet: Sheet) -> dict[str, float]:
        """The metrics of an evaluation round: every held-out score, gain and win rate of the total."""
        base = self.base or self.measure_base()
        row = {"heldout/diversity": sheet.diversity}
        for label, values in sheet.scores.items():
            row |= _moments(label, base.scores[label], values)
        for label, value in sheet.sets.items():
            row |= {f"heldout/{label}/set": value, f"heldout/{label}/set_base": base.sets[label]}
        if not self.run.reward.rewards:
            return row
        total, before = self.total(sheet.scores), self.total(base.scores)
        for name, statistic in (("gain_sd", gain), ("win_rate", win_rate)):
            value, (low, high) = statistic(before, total)
            row |= {f"heldout/{name}": value, f"heldout/{name}_low": low, f"heldout/{name}_high": high}
        return row | _moments("total", before, total)

    def summary(self, sheet: Sheet) -> dict[str, object]:
        """What summary.json says of the final model."""
        base = self.base or self.measure_base()
        each = {label: _other(base.scores[label], values) for label, values in sheet.scores.items()}
        return {
            **self._trained(base, sheet),
            "heldout_parts": {label: each[label] for label in self.run.reward.rewards},
            "heldout_other": {label: each[label] for label in self._of("picture", "group")},
            "heldout_sets": {
                label: {"base": base.sets[label], "trained": value} for label, value in sheet.sets.items()
            },
            "diversity": {"base": base.diversity, "trained": sheet.diversity},
        }

    def _trained(self, base: Sheet, sheet: Sheet) -> dict[str, object]:
        """What became of the trained reward; a run that learns from votes has none."""
        if not self.run.reward.rewards:
            return {}
        other = _other(self.total(base.scores), self.total(sheet.scores))
        return {"heldout_reward_base": other.pop("base"), "heldout_reward": other.pop("trained"), **other}


def _moments(label: str, base: Tensor, values: Tensor) -> dict[str, float]:
    return {
        f"heldout/{label}/mean": float(values.mean()),
        f"heldout/{label}/std": float(values.std()),
        f"heldout/{label}/gain_sd": gain(base, values)[0],
    }


def _other(base: Tensor, trained: Tensor) -> dict[str, object]:
    (gain_sd, gain_ci), (wins, wins_ci) = gain(base, trained), win_rate(base, trained)
    return {
        "base": float(base.mean()),
        "trained": float(trained.mean()),
        "gain_sd": gain_sd,
        "gain_sd_ci": gain_ci,
        "win_rate": wins,
        "win_rate_ci": wins_ci,
    }


def _gather(run: Run, values: Tensor, lengths: Sequence[int]) -> Tensor:
    """The values of all processes, which hold `lengths` of them each."""
    padding = values[-1:].expand(max(lengths) - len(values), *values.shape[1:])
    gathered = torch.split(run.gather(torch.cat([values, padding])), max(lengths))
    return torch.cat([part[:n] for part, n in zip(gathered, lengths, strict=True)])
