"""Before GPU hours are spent: what was captured, how exact it is, what a run will cost."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from diffalign import build, config
from diffalign.config import RunConfig
from diffalign.launch import faults
from diffalign.metrics import peak_memory_mb
from diffalign.registry import configs
from diffalign.run import Batching, Run
from diffalign.runfolder import RunFolder
from diffalign.trainer import Trainer

PLAIN = {
    "steps": 20,
    "algorithm": {"name": "ddpo"},
    "reward": {"jpeg_compressibility": {"name": "jpeg_compressibility"}},
    "heldout_reward": {"jpeg_incompressibility": {"name": "jpeg_incompressibility"}},
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
    """Deviations are nats per dimension and a share of a latent's size; seconds and MB are of a whole round."""

    description: str
    batching: str
    ratio: float
    ratio_alone: float
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
        """The ratio is exactly 1 for the same batch, and near enough to 1 for another."""
        return self.ratio == 0 and (self.limit is None or self.ratio_alone <= self.limit / 10)


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
    with faults("the same command"), tempfile.TemporaryDirectory() as nowhere:
        trainer = build.trainer(small, RunFolder(Path(nowhere)))
        trainer.one_round()  # warms up kernels and caches
        row = trainer.one_round()
        alone, trip = _exactness(trainer.run)
        return Diagnosis(
            description=trainer.run.policy.describe(),
            batching=build.pick(Batching, chosen).describe(trainer.run.accelerator.num_processes),
            ratio=row.get("ratio/deviation", float("nan")),
            ratio_alone=alone,
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
    """Largest shift of a log-prob, per dimension, when each transition is re-scored alone; and how far a
    latent moves when it is split into clean sample and noise in float32 and put together again.
    """
    batch = run.sample()
    live = batch.live
    alone, trip = 0.0, 0.0
    for col in live.tolist():
        rows, cols = torch.tensor([0]), torch.tensor([col])
        now = run.transition(batch, rows, cols)[1].cpu()
        alone = max(alone, float((now - batch.log_probs[rows, cols].cpu()).abs() / batch.dim))
        x = batch.states[:1, col]
        i = torch.tensor([col], device=x.device)
        output = run.policy.predict(x, batch.grid.time(i), batch.cond[[0]])
        x0, eps = batch.grid.x0_eps(output, x, i)
        signal, noise = batch.grid.level(i, x)
        back = (signal * x0 + noise * eps).to(x.dtype).float()
        trip = max(trip, float((back - x.float()).norm() / x.float().norm()))
    return alone, trip


def _evaluation(trainer: Trainer) -> float:
    start = time.perf_counter()
    trainer.evaluator.sheet()
    return time.perf_counter() - start
