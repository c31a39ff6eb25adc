"""The loop around an algorithm: resuming, limits, best weights, what is logged. On the linear chain."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from toys import Chain, ChainPolicy

from diffalign.algorithms.ddpo import DDPO
from diffalign.errors import DiffalignError, RunError
from diffalign.folders.checkpoint import latest
from diffalign.folders.runfolder import RunFolder
from diffalign.launching.launch import load_trained
from diffalign.metrics import forget_peak_memory
from diffalign.run import Batching, Run
from diffalign.training.evaluate import Evaluator
from diffalign.training.optimize import Optimizer, OptimizerSettings
from diffalign.training.trainer import Schedule, Trainer

RULE = Chain(a=(0.9, 0.8), sigma=(0.5, 0.4))


class PicturePolicy(ChainPolicy):
    """Its samples are pictures of one pixel."""

    def decode(self, latents):
        return latents.reshape(-1, 3, 1, 1)


def total(images, prompts):
    return images.mean((1, 2, 3))


def spread(images, prompts):
    return -images.square().mean((1, 2, 3))


def make(path: Path, identity: dict | None = None, lr: float = 0.05, **schedule) -> Trainer:
    policy = PicturePolicy(2, 3)
    run = Run(policy, RULE, total, ["a", "b"], Batching(2, 4), accelerator=Accelerator(cpu=True))
    optimizer = Optimizer(
        policy.trainable(), OptimizerSettings(lr=lr, updates=8, ema_decay=0.5), run.accelerator
    )
    evaluator = Evaluator(run, ["x", "y", "z"], {"spread": spread})
    plan = Schedule(**{"rounds": 6, "eval_every": 2, "checkpoint_every": 2, **schedule})
    folder = RunFolder(path) if (path / "config.yaml").exists() else RunFolder.create(path, {})
    algorithm = DDPO(advantage="batch", min_count=2)
    return Trainer(run, algorithm, optimizer, evaluator, plan, folder, identity=identity or {})


def weights(path: Path) -> torch.Tensor:
    return load_file(path / "lora" / "delta.safetensors")["delta"]


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    make(tmp_path / "whole").train()
    make(tmp_path / "parts", rounds=4).train()
    make(tmp_path / "parts").train(resume=True)
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    whole, parts = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("whole", "parts"))
    for key in whole.keys() - {"seconds"}:
        assert whole[key] == parts[key], key


@pytest.mark.parametrize("fault", [RunError, KeyboardInterrupt])
@pytest.mark.parametrize("scored", [2, 9, 24, 36, 40, 55])
def test_a_failing_reward_or_an_end_at_once_costs_no_finished_round(tmp_path, scored, fault):
    """It scores 3 pictures, then 8 a round, and 3 more after rounds 4 and 6; failing in each kind of place."""
    make(tmp_path / "whole", eval_every=4, checkpoint_every=5).train()
    trainer, left = make(tmp_path / "parts", eval_every=4, checkpoint_every=5), [scored]

    def failing(images, prompts):
        left[0] -= len(prompts)
        if left[0] < 0:
            raise fault("the server is gone")
        return total(images, prompts)

    trainer.run.reward.rewards["reward"] = failing
    with pytest.raises(fault, match="the server is gone"):
        trainer.train()
    finished, newest = trainer.run.round, latest(trainer.folder.checkpoints)
    assert (newest.name if newest else "round-0000") == f"round-{finished:04d}"
    make(tmp_path / "parts", eval_every=4, checkpoint_every=5).train(resume=newest is not None)
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    rows, whole = (RunFolder(tmp_path / name).rows() for name in ("parts", "whole"))
    timed = {key for row in whole for key in row if key.startswith(("seconds", "peak"))}
    for ours, theirs in zip(rows, whole, strict=True):
        assert {k: ours[k] for k in ours.keys() - timed} == {k: theirs[k] for k in theirs.keys() - timed}


def test_the_reward_rises_and_the_rows_say_so(tmp_path):
    trainer = make(tmp_path / "run", rounds=20, lr=0.2)
    summary = trainer.train()
    assert summary["heldout_reward"] > summary["heldout_reward_base"]
    assert summary["gain_sd"] > 0
    rows = trainer.folder.rows()
    assert [row["round"] for row in rows] == list(range(20))
    for key in ("reward/total/q90", "ratio/mean", "kl", "clip_fraction", "grad_norm", "denoiser_calls",
                "reward_calls", "seconds/sample", "seconds/update", "peak_memory_mb", "lr"):  # fmt: skip
        assert all(key in row for row in rows), key
    assert rows[0]["ratio/deviation"] == 0
    assert rows[0]["kl"] == 0
    assert rows[-1]["kl"] > 0
    assert rows[1]["heldout/spread/gain_sd"] != 0


def test_calls_are_counted(tmp_path):
    trainer = make(tmp_path / "run", rounds=1, eval_every=5)
    row = (trainer.train(), trainer.folder.rows()[0])[1]
    sampled, updated, kl = 8 * 2, 8 * 2, 4 * 2 * 2
    assert row["denoiser_calls"] == sampled + updated + kl
    assert row["reward_calls"] == 8


def test_peak_memory_is_a_round_s_own(tmp_path, monkeypatch):
    trainer, events = make(tmp_path / "run"), []
    monkeypatch.setattr("diffalign.training.trainer.forget_peak_memory", lambda: events.append("forgotten"))
    monkeypatch.setattr(trainer.algorithm, "collect", lambda run: events.append("collected") or run.sample())
    monkeypatch.setattr(trainer.algorithm, "minibatches", lambda run, batch: [])
    trainer.one_round()
    assert events == ["forgotten", "collected"]


def test_peak_memory_is_forgotten_on_cuda_alone(monkeypatch):
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: events.append("reset"))
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        forget_peak_memory()
    assert events == ["reset"]


def test_too_much_kl_stops(tmp_path):
    summary = make(tmp_path / "run", lr=1.0, rounds=50, max_kl=1.0).train()
    assert summary["rounds"] < 50
    assert "above max_kl = 1.0" in summary["stopped"]


def test_a_fallen_heldout_reward_stops_or_lowers_the_rate(tmp_path):
    stopped = make(tmp_path / "a", lr=2.0, rounds=30, max_heldout_drop=0.5).train()["stopped"]
    assert "held-out spread fell by" in stopped
    trainer = make(tmp_path / "b", lr=2.0, rounds=30, max_heldout_drop=0.5, on_limit="lower_lr")
    assert trainer.train()["stopped"] is None
    assert trainer.optimizer.lr < 2.0


def test_time_is_a_limit(tmp_path):
    assert "minutes" in make(tmp_path / "run", rounds=1000, minutes=1e-3).train()["stopped"]


def test_the_best_weights_are_kept(tmp_path):
    trainer = make(tmp_path / "run", lr=0.2, rounds=6)
    summary = trainer.train()
    best = max(
        (row for row in trainer.folder.rows() if "heldout/total/mean" in row),
        key=lambda r: r["heldout/total/mean"],
    )
    assert summary["best_round"] == best["round"] + 1
    assert (tmp_path / "run" / "lora-best").is_dir()


def test_samples_are_of_the_final_the_best_or_before_the_end_the_averaged_weights(tmp_path):
    trainer = make(tmp_path / "run", lr=0.2, rounds=4)
    trainer.train()

    def sampled(*, best: bool = False) -> torch.Tensor:
        fresh = PicturePolicy(2, 3)
        load_trained(fresh, trainer.folder, best=best)
        return fresh.delta.detach()

    assert torch.equal(sampled(), weights(tmp_path / "run"))
    best = load_file(tmp_path / "run" / "lora-best" / "delta.safetensors")["delta"]
    assert torch.equal(sampled(best=True), best)
    shutil.rmtree(tmp_path / "run" / "lora")
    assert torch.equal(sampled(), trainer.optimizer.ema.shadow_params[0])
    assert not torch.equal(sampled(), trainer.run.policy.delta)
    shutil.rmtree(tmp_path / "run" / "lora-best")
    with pytest.raises(DiffalignError, match="no evaluation yet, or keep_best is false"):
        sampled(best=True)


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
    make(tmp_path / "run", identity={"lr": 1.0, "seed": 0}, rounds=2).train()
    with pytest.raises(DiffalignError, match=r"another config \(lr: 1\.0 then, 2\.0 now\)"):
        make(tmp_path / "run", identity={"lr": 2.0, "seed": 0}).train(resume=True)


def test_ratio_warnings_name_both_numbers(tmp_path, caplog):
    trainer = make(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        trainer._check_ratio({"ratio/deviation": 2e-5})
    assert "2.0e-05" in caplog.text
    assert "1.0e-04" in caplog.text


def test_rounds_time_their_own_phases(tmp_path):
    trainer = make(tmp_path / "run", rounds=4, eval_every=2)
    trainer.train()
    assert ["seconds/evaluate" in row for row in trainer.folder.rows()] == [False, True, False, True]
    assert all("seconds/kl" in row for row in trainer.folder.rows())


def test_a_fallen_trained_reward_is_a_limit_too(tmp_path):
    trainer = make(tmp_path / "run", rounds=4, max_heldout_drop=0.5)
    trainer._apply_limits({"kl": 0.0, "heldout/total/gain_sd": -0.6})
    assert "held-out total fell by 0.60 sd" in trainer.stopped


def test_the_summary_holds_what_a_reader_needs(tmp_path):
    summary = make(tmp_path / "run", rounds=2).train()
    assert summary.keys() >= {
        "heldout_reward_base", "heldout_reward", "gain_sd", "gain_sd_ci", "win_rate", "win_rate_ci",
        "heldout_other", "denoiser_calls", "reward_calls", "seconds",
    }  # fmt: skip
    assert json.loads((tmp_path / "run" / "summary.json").read_text()).keys() == summary.keys()


def test_the_lora_that_is_left_holds_the_averaged_weights(tmp_path):
    trainer = make(tmp_path / "run", rounds=3)
    trainer.train()
    latest, average = trainer.run.policy.delta.detach(), trainer.optimizer.ema.shadow_params[0]
    assert not torch.equal(latest, average)
    torch.testing.assert_close(weights(tmp_path / "run"), average, rtol=0, atol=0)


def test_one_interrupted_process_interrupts_all(tmp_path, monkeypatch):
    trainer = make(tmp_path / "run")
    monkeypatch.setattr(trainer.run, "gather", lambda values: torch.tensor([0, 1]))
    assert trainer._anywhere(False)
