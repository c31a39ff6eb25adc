"""Runs with composed rewards, from the first picture to the report, on the linear chain."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from toys import Chain, ChainPolicy

from diffalign.algorithms.d3po import D3PO
from diffalign.algorithms.ddpo import DDPO
from diffalign.folders.runfolder import RunFolder
from diffalign.pages import report
from diffalign.rewarding.combine import LogSigmoid, Min
from diffalign.rewarding.compose import Composite
from diffalign.rewarding.lagrangian import Lagrangian
from diffalign.run import Batching, Run
from diffalign.training.calibrate import Calibrator
from diffalign.training.evaluate import Evaluator
from diffalign.training.optimize import Optimizer, OptimizerSettings
from diffalign.training.trainer import Schedule, Trainer

RULE = Chain(a=(0.9, 0.8), sigma=(0.5, 0.4))
CALLS: Counter[str] = Counter()


class Pixels(ChainPolicy):
    """Samples are pictures of one pixel: three numbers."""

    def decode(self, latents):
        return latents.reshape(-1, 3, 1, 1)


def counted(name, function):
    def reward(images, prompts):
        CALLS[name] += len(images)
        return function(images.flatten(1))

    return reward


class Spread:
    """How different all pictures are."""

    def score_set(self, images, prompts):
        CALLS["spread"] += len(images)
        return images.flatten(1).std(0).mean()


FIRST = counted("first", lambda x: x[:, 0])
SMALL = counted("small", lambda x: -100 * x.square().mean(1))
THIRD = counted("third", lambda x: x[:, 2])


def make(
    path: Path, *, algorithm=None, lr: float = 0.05, schedule: dict | None = None, **composition
) -> Trainer:
    policy = Pixels(2, 3)
    composite = Composite({"first": FIRST, "small": SMALL}, **composition)
    run = Run(policy, RULE, composite, ["a", "b", "c"], Batching(2, 8), accelerator=Accelerator(cpu=True))
    optimizer = Optimizer(policy.trainable(), OptimizerSettings(lr=lr, updates=100), run.accelerator)
    folder = RunFolder(path) if (path / "config.yaml").exists() else RunFolder.create(path, CONFIG)
    composite.base = Calibrator(run, folder, 32)
    judge = Evaluator(run, ["x", "y", "z", "u"], {"third": THIRD, "spread": Spread()})
    plan = Schedule(**{"rounds": 6, "eval_every": 2, "checkpoint_every": 2} | (schedule or {}))
    return Trainer(run, algorithm or DDPO(advantage="batch"), optimizer, judge, plan, folder)


CONFIG = {"algorithm": {"name": "ddpo"}, "model": "chain"}


def test_two_rewards_train_and_one_judges(tmp_path):
    trainer = make(
        tmp_path / "run",
        lr=0.2,
        schedule={"rounds": 12, "eval_every": 6},
        weights={"first": 1.0, "small": 0.001},
    )
    summary = trainer.train()
    rows = trainer.folder.rows()
    for label in ("total", "first", "small"):
        assert all(f"reward/{label}/q90" in row for row in rows)
    looked = [row for row in rows if "heldout/diversity" in row]
    for label in ("total", "first", "small", "third"):
        assert all(f"heldout/{label}/gain_sd" in row for row in looked)
    assert all(row["heldout/spread/set_base"] == looked[0]["heldout/spread/set_base"] for row in looked)
    assert "reward/third/mean" not in rows[0]
    assert summary["heldout_parts"].keys() == {"first", "small"}
    assert summary["heldout_other"].keys() == {"third"}
    assert summary["heldout_sets"]["spread"].keys() == {"base", "trained"}
    assert summary["heldout_parts"]["first"]["gain_sd"] > 0
    text = report.write(trainer.folder).read_text(encoding="utf-8")
    for name in ("trained reward", "first, trained on", "small, trained on", "third, held out"):
        assert f">{name}</text>" in text
        assert f"<td>{name}</td>" in text


def test_every_reward_looks_at_a_sheet_once(tmp_path):
    trainer = make(tmp_path / "run")
    CALLS.clear()
    sheet = trainer.evaluator.measure_base()
    trainer.evaluator.compare(sheet)
    trainer.evaluator.summary(sheet)
    assert CALLS == {"first": 4, "small": 4, "third": 4, "spread": 4}
    assert trainer.run.reward_calls == 12


def test_the_total_is_combined_from_the_parts_of_all_chunks(tmp_path):
    run = make(tmp_path / "run", normalize="before").run
    run.batching = Batching(2, 8, sample_batch=3)
    batch = run.sample()
    z = [
        torch.cat([(v[r] - v[r].mean()) / v[r].std(correction=0) for r in (slice(8), slice(8, 16))])
        for v in (batch.rewards["first"], batch.rewards["small"])
    ]
    torch.testing.assert_close(batch.total, z[0] + z[1], atol=1e-4, rtol=1e-4)
    assert run.reward_row["reward/total/mean"] != pytest.approx(0, abs=1e-3)  # what is shown still moves


def test_group_rewards_see_whole_prompts_whatever_the_batch(tmp_path):
    class Rank:
        sizes: list[int] = []  # noqa: RUF012

        def score_group(self, images, prompt):
            self.sizes.append(len(images))
            return images[:, 0].flatten().argsort().argsort().float()

    run = make(tmp_path / "run").run
    run.reward = Composite({"rank": Rank()})
    run.batching = Batching(2, 8, sample_batch=3)
    batch = run.sample()
    assert Rank.sizes == [8, 8]
    assert batch.total[:8].sort().values.tolist() == list(range(8))
    assert torch.equal(batch.total[:8].argsort(), batch.final[:8, 0].argsort())


def weights(path: Path) -> torch.Tensor:
    return load_file(path / "lora" / "delta.safetensors")["delta"]


COMPOSITIONS = {
    "lagrangian": lambda: {"combiner": Lagrangian(["small >= -30"], rate=0.02), "calibrate": True},
    "log_sigmoid": lambda: {"combiner": LogSigmoid(pictures=4), "calibrate": True},
    "before": lambda: {"normalize": "before"},
    "min": lambda: {"combiner": Min(), "calibrate": True},
}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, name):
    composition = COMPOSITIONS[name]
    make(tmp_path / "whole", **composition()).train()
    make(tmp_path / "parts", schedule={"rounds": 4}, **composition()).train()
    make(tmp_path / "parts", **composition()).train(resume=True)
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    whole, parts = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("whole", "parts"))
    for key in whole.keys() - {"seconds"}:
        assert whole[key] == parts[key], key
    rows = [RunFolder(tmp_path / n).rows() for n in ("whole", "parts")]
    for one, other in zip(*rows, strict=True):
        for key in one.keys() & other.keys():
            if not key.startswith(("seconds/", "peak_memory", "denoiser", "reward_calls")):
                assert one[key] == other[key], key
    calibrations = [(tmp_path / n / "calibration.json").read_text() for n in ("whole", "parts")]
    assert calibrations[0] == calibrations[1]


def test_a_constraint_is_kept_and_its_multiplier_is_logged(tmp_path):
    """Without it `first` grows without end; with it the mean of `small` settles near its bound."""
    schedule = {"rounds": 60, "eval_every": 60, "checkpoint_every": 60}
    free = make(tmp_path / "free", lr=0.1, schedule=schedule, weights={"first": 1.0, "small": 0.0})
    free.train()
    method = Lagrangian(["small >= -80"], rate=0.002, memory=0.5)
    bound = make(tmp_path / "bound", lr=0.1, schedule=schedule, combiner=method)
    bound.train()
    last = [sum(row["reward/small/mean"] for row in t.folder.rows()[-10:]) / 10 for t in (free, bound)]
    assert last[0] < -200
    assert last[1] == pytest.approx(-80, abs=25)
    path = [row["multiplier/small >= -80"] for row in bound.folder.rows()]
    assert path[0] == 0
    assert max(path) > 0.005
    assert "small &gt;= -80" in report.write(bound.folder).read_text(encoding="utf-8")


def test_the_best_round_is_judged_by_the_multipliers_of_now(tmp_path):
    """A round that was best before the constraint bit is overtaken without having been measured anew."""
    method = Lagrangian(["small >= 0"], rate=1.0)
    judge = make(tmp_path / "run", combiner=method).evaluator
    early = {"first": torch.full((4,), 5.0), "small": torch.full((4,), -300.0)}
    late = {"first": torch.full((4,), 4.0), "small": torch.full((4,), -10.0)}
    assert not judge.better(late, early)
    method.duals = {"small >= 0": 0.1}
    assert judge.better(late, early)


def test_preferences_read_the_composed_total(tmp_path):
    trainer = make(
        tmp_path / "run",
        algorithm=D3PO(),
        lr=0.03,
        schedule={"rounds": 8, "eval_every": 8},
        normalize="before",
    )
    summary = trainer.train()
    assert summary["heldout_reward"] > summary["heldout_reward_base"]
