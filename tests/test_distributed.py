"""Two processes with the same global batch make the gradient of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import os
import sys
from pathlib import Path
from safetensors.torch import save_file
from diffalign.folders import runfolder
from diffalign.launching import build
from diffalign.settings import config

settings, out = config.load("emoji-" + sys.argv[1], sys.argv[3:]), Path(sys.argv[2])
trainer = build.trainer(settings, runfolder.RunFolder(out.parent / "run"))
assert trainer.run.accelerator.num_processes == int(os.environ["EXPECTED_PROCESSES"])
batch = trainer.algorithm.collect(trainer.run)
for loss in trainer.algorithm.losses(trainer.run, next(iter(trainer.algorithm.minibatches(trainer.run, batch)))):
    trainer.optimizer.backward(loss)
trainer.optimizer._reduce()
if trainer.run.accelerator.is_main_process:
    save_file({n: p.grad.clone() for n, p in trainer.run.policy.named_trainable()}, out)
"""
SIZES = ["steps=3", "prompts_per_round=4", "images_per_prompt=2", "updates_per_round=2"]
SIZES += ["sample_batch=4", "micro_batch=4"]


def gradient(algorithm: str, processes: int, folder: Path) -> dict[str, torch.Tensor]:
    script, out = folder / "one_update.py", folder / f"{processes}.safetensors"
    script.write_text(SCRIPT)
    launch = [sys.executable, str(script)]
    if processes > 1:
        launch = [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
            "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", str(script),
        ]  # fmt: skip
    environment = {**os.environ, "EXPECTED_PROCESSES": str(processes)}
    command = [*launch, algorithm, str(out), *SIZES]
    subprocess.run(command, check=True, capture_output=True, timeout=300, env=environment)
    return load_file(out)


@pytest.mark.parametrize("algorithm", ["d3po", "prdp", "ddpo"])
def test_two_processes_make_the_gradient_of_one(algorithm, tmp_path):
    one, two = (gradient(algorithm, n, tmp_path) for n in (1, 2))
    flat = [torch.cat([g[name].flatten() for name in sorted(one)]) for g in (one, two)]
    assert float(flat[0].norm()) > 0
    assert float((flat[0] - flat[1]).norm() / flat[0].norm()) <= 1e-5
