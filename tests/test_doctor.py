"""What a diagnosis says of a whole round, from a small one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffalign.commands import doctor
from diffalign.commands.doctor_text import rows
from diffalign.policy import LoraSpec, Policy
from diffalign.steps import DDIM
from diffalign.trajectory import Trajectory
from diffalign.walk import rollout

from .families.stable_diffusion import SIZE, stable_diffusion

FOUND = doctor.Diagnosis("", "", 0.0, 1e-6, 0.0, 1e-4, {"sample": 2.0, "kl": 1.0}, 5.0, 100.0, 10, 2)
SMALL = [
    "steps=2", "rule.quiet_last=1", "prompts_per_round=4", "images_per_prompt=2", "updates_per_round=1",
    "sample_batch=4", "micro_batch=4", "heldout_limit=2", "trackers=[]", "diversity=null",
]  # fmt: skip
QUIET = """\
from diffalign.algorithms.ddpo import DDPO

class Quiet(DDPO):
    def losses(self, run, batch):
        yield sum(p.sum() for p in run.policy.trainable()) * 0
"""


def batch(count: int) -> Trajectory:
    policy = Policy(stable_diffusion(), steps=3, call=SIZE, lora=LoraSpec(rank=2))
    seeds = list(range(count))
    return rollout(policy, DDIM(), ["cat"] * count, seeds, noise_seeds=seeds, group=seeds, batch=4)


def test_a_round_holds_in_proportion_to_its_pictures():
    one, three = batch(1), batch(3)
    assert doctor.held(three) == pytest.approx(3 * doctor.held(one), rel=0.01)
    latents = one.states.nbytes
    assert doctor.held(one) > latents + one.log_probs.nbytes
    with_means = replace(one, reference_means=torch.zeros(1, 3, *one.states.shape[2:]))
    assert doctor.held(with_means) == doctor.held(one) + latents * 3 // 4


def test_all_phases_count_and_the_kl_does_not_grow_with_the_round():
    row = {"seconds/sample": 1.0, "seconds/kl": 2.0, "seconds/update": 3.0, "lr": 1.0}
    assert doctor.phases(row, tried=8, whole=80) == {"sample": 10.0, "kl": 2.0, "update": 30.0}
    assert doctor.phases(row, tried=2, whole=80)["kl"] == 4.0
    assert FOUND.run_seconds == 10 * (2.0 + 1.0) + 2 * 5.0


def test_an_algorithm_that_does_not_re_score_has_a_diagnosis_too(tmp_path: Path):
    (tmp_path / "quiet.py").write_text(QUIET)
    overrides = [*SMALL, f"algorithm={tmp_path / 'quiet.py'}:Quiet"]
    found = doctor.examine(doctor.settings("emoji-ddpo", overrides))
    assert found.ratio_micro is None
    assert found.healthy
    assert ("ratio, micro-batches", "not measured") in [row[:2] for row in rows(found)]
    assert set(found.round_seconds) >= {"sample", "score", "kl", "update"}


def test_memory_counts_a_whole_round_s_trajectories(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "peak_memory_mb", lambda: 100.0)
    small, large = (
        doctor.examine(doctor.settings("emoji-ddpo", [*SMALL, f"prompts_per_round={n}"])).memory_mb
        for n in (2, 42)
    )
    assert small == 100
    states = 40 * 2 * (2 + 1) * 4 * 16 * 16 * 4 / 1e6
    assert large - small > 2 * states, "all pictures' states, and their minibatch"
    assert large - small < 20 * states
