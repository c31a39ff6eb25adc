"""What the base model scores is measured once, kept with the run, and the same for every process."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from toys import Chain, ChainPolicy

from diffalign.errors import DiffalignError
from diffalign.folders.runfolder import RunFolder
from diffalign.rewarding.combine import LogSigmoid, Min
from diffalign.rewarding.compose import Composite
from diffalign.run import Batching, Run
from diffalign.training.calibrate import Calibrator

RULE = Chain(a=(0.9, 0.8), sigma=(0.5, 0.4))
STD = (0.72**2 + 0.8**2 * 0.5**2 + 0.4**2) ** 0.5
"""Of each number of a sample of the base chain; its mean is 0."""


class Pixels(ChainPolicy):
    """Samples are pictures of one pixel."""

    def decode(self, latents):
        return latents.reshape(-1, 3, 1, 1)


def mean(images, prompts):
    return images.mean((1, 2, 3))


def far(images, prompts):
    return 100 + 50 * images.mean((1, 2, 3))


def make(
    path: Path, *, seed: int = 0, pictures: int = 400, identity: dict | None = None, **composition
) -> Run:
    policy = Pixels(2, 3)
    composite = Composite({"mean": mean, "far": far}, **composition)
    prompts = [f"prompt {k}" for k in range(5)]
    run = Run(policy, RULE, composite, prompts, Batching(4, 2, sample_batch=32), seed, Accelerator(cpu=True))
    folder = RunFolder.open(path) if (path / "config.yaml").exists() else RunFolder.create(path, {})
    composite.base = Calibrator(run, folder, pictures, identity or {})
    with torch.no_grad():
        policy.delta.fill_(3.0)  # trained far away from the base
    return run


def test_statistics_are_those_of_the_untuned_model(tmp_path):
    run = make(tmp_path / "run", calibrate=True, combiner=Min(), pictures=2000)
    run.reward.base([])
    found = run.reward.base.statistics
    expected = STD / 3**0.5
    error = expected / 2000**0.5
    assert found["mean"]["mean"] == pytest.approx(0, abs=4 * error)
    assert found["mean"]["std"] == pytest.approx(expected, abs=4 * error)
    assert found["mean"]["q90"] == pytest.approx(1.2816 * expected, abs=8 * error)
    assert found["far"]["mean"] == pytest.approx(100 + 50 * found["mean"]["mean"])
    assert found["far"]["std"] == pytest.approx(50 * found["mean"]["std"], rel=1e-5)


def test_calibrated_members_are_on_one_scale(tmp_path):
    batch = make(tmp_path / "run", calibrate=True, combiner=Min()).sample()
    statistics = json.loads((tmp_path / "run" / "calibration.json").read_text())["statistics"]
    z = [(batch.rewards[k] - statistics[k]["mean"]) / statistics[k]["std"] for k in ("mean", "far")]
    torch.testing.assert_close(batch.total, torch.minimum(*z))
    torch.testing.assert_close(z[0], z[1], atol=1e-4, rtol=0)


def test_levels_are_quantiles_of_base_pictures_of_the_prompt(tmp_path):
    run = make(tmp_path / "run", combiner=LogSigmoid(quantile=0.85, pictures=400))
    batch = run.sample()
    levels = run.reward.base.levels
    assert levels.keys() == set(batch.prompts)
    for level in levels.values():
        assert level["mean"] == pytest.approx(1.0364 * STD / 3**0.5, abs=0.15)
        assert level["far"] == pytest.approx(100 + 50 * level["mean"], rel=1e-5)
    assert len({level["mean"] for level in levels.values()}) == len(levels)
    by_hand = sum(
        torch.nn.functional.logsigmoid(batch.rewards[k] - torch.tensor([levels[p][k] for p in batch.prompts]))
        for k in ("mean", "far")
    )
    torch.testing.assert_close(batch.total, by_hand)


def test_a_prompt_is_met_once_and_its_level_does_not_depend_on_when(tmp_path):
    one, other = (make(tmp_path / n, combiner=LogSigmoid(pictures=4)) for n in ("one", "other"))
    one.reward.base(["prompt 1", "prompt 2"])
    calls = one.policy.denoiser_calls
    assert calls == 2 * 4 * 2
    one.reward.base(["prompt 2", "prompt 1", "prompt 1"])
    assert one.policy.denoiser_calls == calls
    other.reward.base(["prompt 3", "prompt 2"])
    assert one.reward.base.levels["prompt 2"] == other.reward.base.levels["prompt 2"]


def test_a_run_that_goes_on_reads_what_it_knew(tmp_path):
    first = make(tmp_path / "run", calibrate=True, combiner=LogSigmoid(pictures=4), identity={"a": (1, 2)})
    known = first.reward.base(["prompt 1"])
    again = make(tmp_path / "run", calibrate=True, combiner=LogSigmoid(pictures=4), identity={"a": (1, 2)})
    found = again.reward.base(["prompt 1"])
    assert (found.mean, found.std) == (known.mean, known.std)
    assert all(torch.equal(found.levels[k], known.levels[k]) for k in known.levels)
    assert again.policy.denoiser_calls == 0


def test_what_another_config_measured_is_not_believed(tmp_path):
    make(tmp_path / "run", calibrate=True, identity={"steps": 2}).reward.base([])
    other = make(tmp_path / "run", calibrate=True, identity={"steps": 3})
    other.reward.base([])
    assert other.policy.denoiser_calls > 0


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run = make(tmp_path / name, calibrate=True, seed=seed, pictures=8)
        run.reward.base([])
        found.append(run.reward.base.statistics)
    assert found[0] == found[1] != found[2]


def test_a_constant_reward_keeps_its_unit_and_says_so(tmp_path, caplog):
    run = make(tmp_path / "run", calibrate=True, pictures=4)
    run.reward.rewards = {"mean": mean, "safe": lambda i, p: torch.ones(len(p))}
    with caplog.at_level(logging.WARNING):
        base = run.reward.base([])
    assert base.std["safe"] == 1
    assert "'safe' is 1 for all 4 base pictures" in caplog.text


def test_one_picture_calibrates_nothing(tmp_path):
    with pytest.raises(DiffalignError, match="raise calibration_pictures"):
        make(tmp_path / "run", calibrate=True, pictures=1).reward.base([])


def test_group_rewards_are_calibrated_on_groups(tmp_path):
    seen = []

    class Rank:
        def score_group(self, images, prompt):
            seen.append(len(images))
            return images.mean((1, 2, 3)).argsort().argsort().float()

    run = make(tmp_path / "run", calibrate=True, pictures=12)
    run.reward.rewards = {"rank": Rank()}
    assert run.reward.base([]).mean["rank"] == 0.5
    assert seen == [2] * 6


SCRIPT = """
import sys
from pathlib import Path
import torch
from diffalign.rewarding.combine import LogSigmoid
from test_calibrate import make

folder = Path(sys.argv[1])
run = make(folder / "run", calibrate=True, combiner=LogSigmoid(pictures=3), pictures=7)
rank = run.accelerator.process_index
for ask in (["prompt 0", "prompt 1"], ["prompt 1", "prompt 2"]):
    run.reward.base(ask if rank == 0 else [f"prompt {k}" for k in (4, 1, 3)])
torch.save((run.reward.base.statistics, run.reward.base.levels), folder / f"{rank}.pt")
"""


def together(*command: object) -> None:
    """Run a script as two processes that find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            [sys.executable, *map(str, command)], stderr=subprocess.PIPE, text=True,
            env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]  # fmt: skip
    errors = [worker.communicate(timeout=600)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors


def test_processes_end_with_the_same_statistics_as_one(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}\n")
    together(tmp_path / "script.py", str(tmp_path))
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert one == other
    assert set(one[1]) == {f"prompt {k}" for k in range(5)}
    alone = make(tmp_path / "alone", calibrate=True, combiner=LogSigmoid(pictures=3), pictures=7)
    alone.reward.base(list(one[1]))
    for found, expected in ((one[0], alone.reward.base.statistics), (one[1], alone.reward.base.levels)):
        for name, values in expected.items():
            assert found[name] == pytest.approx(values, rel=1e-5)
