"""Before GPU hours are spent: what was captured, how exact it is, what a run will cost."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffalign import build, config
from diffalign.config import RunConfig
from diffalign.launch import faults
from diffalign.metrics import peak_memory_mb
from diffalign.registry import configs
from diffalign.run import Batching, Run
from diffalign.runfolder import RunFolder
from diffalign.trainer import Trainer
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
    """Deviations are nats per dimension, of the same batch and of the config's micro-batches; round_trip is a
    share of a latent's size; seconds are of a whole round, or of an evaluation.
    """

    description: str
    batching: str
    ratio: float
    ratio_micro: float
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
        return self.ratio == 0 and (self.limit is None or self.ratio_micro <= self.limit / 10)


def settings(target: str, overrides: list[str]) -> RunConfig:
    """The config called `target`, or an ordinary run of the model called `target`."""
    if target in configs() or target.endswith((".yaml", ".yml")):
        return config.load(target, overrides)
    return config.load_raw({"model": target, **PLAIN}, overrides)


def examine(chosen: RunConfig) -> Diagnosis:
    """Capture the model, run one small round of the config, and scale what it took."""
    per_round = chosen.prompts_per_round
    prompts = max(1, min(per_round, chosen.sample_batch // chosen.images_per_prompt))
    small = chosen.model_copy(update={"prompts_per_round": prompts, "updates_per_round": 1})
    with ExitStack() as stack:
        stack.enter_context(faults("the same command"))
        nowhere = stack.enter_context(tempfile.TemporaryDirectory())
        trainer = stack.enter_context(closing(build.trainer(small, RunFolder(Path(nowhere)))))
        trainer.one_round()  # warms up kernels and caches
        row = trainer.one_round()
        same, trip = _exactness(trainer.run)
        return Diagnosis(
            description=trainer.run.policy.describe(),
            batching=build.pick(Batching, chosen).describe(trainer.run.accelerator.num_processes),
            ratio=same,
            ratio_micro=row["ratio/deviation"],
            round_trip=trip,
            limit=getattr(trainer.algorithm, "clip_range_mean", None)
            or getattr(trainer.algorithm, "clip_mean", None),
            round_seconds={
                k[8:]: v * per_round / prompts for k, v in row.items() if k.startswith("seconds/")
            },
            evaluation_seconds=_evaluation(trainer),
            memory_mb=peak_memory_mb(),
            rounds=chosen.rounds,
            evaluations=1 + -(-chosen.rounds // chosen.eval_every),
        )


@torch.no_grad()
def _exactness(run: Run) -> tuple[float, float]:
    """Largest shift of a log-prob, per dimension, when a rollout is re-scored in the batch it was made in;
    and the share of a latent that is lost when it is split into clean sample and noise and joined again.
    """
    batch = run.sample()
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
