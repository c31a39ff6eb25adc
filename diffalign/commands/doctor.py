"""Before GPU hours are spent: what was captured, how exact it is, what a run will cost."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from diffalign.errors import unknown
from diffalign.folders.runfolder import RunFolder
from diffalign.launching import build
from diffalign.launching.launch import faults
from diffalign.metrics import peak_memory_mb
from diffalign.models.layout import leaves_of
from diffalign.models.loading import PACKAGED
from diffalign.registry import configs
from diffalign.run import KL_SAMPLES, Batching, Run
from diffalign.settings import config
from diffalign.settings.config import RunConfig
from diffalign.training.trainer import Trainer
from diffalign.trajectory import Trajectory

PLAIN = {
    "steps": 20,
    "algorithm": {"name": "ddpo"},
    "rewards": "jpeg_compressibility",
    "eval_rewards": "jpeg_incompressibility",
    "prompts": "animals",
    "heldout_prompts": "animals-heldout",
    "heldout_limit": 8,
    "diversity": None,
    "rounds": 100,
    "prompts_per_round": 64,
    "images_per_prompt": 1,
    "sample_batch": 4,
    "micro_batch": 4,
    "lr": 1e-4,
}
"""The run that is assumed for a bare model."""


@dataclass(frozen=True)
class Diagnosis:
    """Deviations are nats per dimension, of the same batch and of the config's micro-batches (None: this
    algorithm does not re-score); round_trip is a share of a latent's size; seconds are of a whole round, or of
    an evaluation; memory_mb is the peak of a trial with a whole round's trajectories in place of its own.
    """

    description: str
    batching: str
    ratio: float
    ratio_micro: float | None
    round_trip: float
    limit: float | None
    round_seconds: dict[str, float]
    evaluation_seconds: float
    memory_mb: float
    rounds: int
    evaluations: int

    @property
    def run_seconds(self) -> float:
        """The whole run."""
        return self.rounds * sum(self.round_seconds.values()) + self.evaluations * self.evaluation_seconds

    @property
    def healthy(self) -> bool:
        """The ratio is exactly 1 in the same batch, and in micro-batches off by little against the clip range."""
        return self.ratio == 0 and (self.limit is None or (self.ratio_micro or 0.0) <= self.limit / 10)


def settings(target: str, overrides: list[str]) -> RunConfig:
    """The config called `target`, or an ordinary run of the model called `target`."""
    if target in configs() or target.endswith((".yaml", ".yml")):
        return config.load(target, overrides)
    if "/" not in target and target not in PACKAGED and not Path(target).is_dir():
        allowed = [*configs(), "FILE.yaml", "FOLDER", "OWNER/NAME", *PACKAGED]
        raise unknown("config or model", target, allowed)
    return config.load_raw({"model": target, **PLAIN}, overrides)


def examine(chosen: RunConfig) -> Diagnosis:
    """Capture the model, run one small round of the config, and scale what it took."""
    pictures, per_round = chosen.images_per_prompt, chosen.prompts_per_round
    prompts = max(1, min(per_round, chosen.sample_batch // pictures))
    small = chosen.model_copy(update={"prompts_per_round": prompts, "updates_per_round": 1})
    with ExitStack() as stack:
        stack.enter_context(faults("the same command"))
        nowhere = stack.enter_context(tempfile.TemporaryDirectory())
        trainer = stack.enter_context(closing(build.trainer(small, RunFolder(Path(nowhere)))))
        trainer.one_round()  # warms up kernels and caches
        row = trainer.one_round()
        batch = trainer.run.sample()
        same, trip = _exactness(trainer.run, batch)
        return Diagnosis(
            description=trainer.run.policy.describe(),
            batching=build.pick(Batching, chosen).describe(trainer.run.accelerator.num_processes),
            ratio=same,
            ratio_micro=row.get("ratio/deviation"),
            round_trip=trip,
            limit=getattr(trainer.algorithm, "clip_range_mean", None)
            or getattr(trainer.algorithm, "clip_mean", None),
            round_seconds=phases(row, prompts * pictures, per_round * pictures),
            evaluation_seconds=_evaluation(trainer),
            memory_mb=_memory(trainer, batch, chosen.updates_per_round, per_round / prompts),
            rounds=chosen.rounds,
            evaluations=1 + -(-chosen.rounds // chosen.eval_every),
        )


def phases(row: Mapping[str, float], tried: int, whole: int) -> dict[str, float]:
    """Seconds of each phase in a round of `whole` pictures, from those of a round of `tried` pictures."""
    seconds = {name.removeprefix("seconds/"): s for name, s in row.items() if name.startswith("seconds/")}
    most = {"kl": KL_SAMPLES}  # it is measured on a few samples, however many there are
    return {
        name: s * min(whole, most.get(name, whole)) / min(tried, most.get(name, tried))
        for name, s in seconds.items()
    }


def held(batch: Trajectory) -> int:
    """Bytes of everything that some trajectories keep: states, log-probs, reference means, conditioning."""
    cond = [batch.cond.batch.values, *(part.values for part in batch.cond.captured.values())]
    kept = [*(getattr(batch, f.name) for f in fields(batch)), cond]
    return sum(leaf.nbytes for _, leaf in leaves_of(kept) if isinstance(leaf, Tensor))


def _memory(trainer: Trainer, sampled: Trajectory, updates: int, times: float) -> float:
    """Peak MB with `times` the trial's trajectories: as sampled, or as collected and cut into minibatches."""
    collected = trainer.algorithm.collect(trainer.run)
    largest = max(held(sampled), held(collected) * (1 + 1 / updates))
    return peak_memory_mb() + (times - 1) * largest / 1e6


@torch.no_grad()
def _exactness(run: Run, batch: Trajectory) -> tuple[float, float]:
    """Largest shift of a log-prob, per dimension, when a rollout is re-scored in the batch it was made in;
    and the share of a latent that is lost when it is split into clean sample and noise and joined again.
    """
    rows = torch.arange(min(len(batch), run.batching.sample_batch))
    shift, loss = 0.0, 0.0
    for col in batch.live.tolist():
        cols = torch.full_like(rows, col)
        now = run.transition(batch, rows, cols)[1].cpu()
        shift = max(shift, float((now - batch.log_probs[rows, cols].cpu()).abs().max() / batch.dim))
        loss = max(loss, _round_trip(run, batch, rows, cols))
    return shift, loss


def _round_trip(run: Run, batch: Trajectory, rows: Tensor, cols: Tensor) -> float:
    rows, i = rows.to(batch.states.device), cols.to(batch.states.device)
    x = batch.states[rows, i]
    output = run.policy.predict(x, batch.grid.time(i), batch.cond[rows])
    x0, eps = batch.grid.x0_eps(output, x, i)
    signal, noise = batch.grid.level(i, x)
    back = (signal * x0 + noise * eps).to(x.dtype).float()
    return float((back - x.float()).norm() / x.float().norm())


def _evaluation(trainer: Trainer) -> float:
    start = time.perf_counter()
    trainer.evaluator.sheet()
    return time.perf_counter() - start
