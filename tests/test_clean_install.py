"""`pip install 'diffalign[rewards]'` in an environment with nothing else makes every reward of the zoo usable."""

from __future__ import annotations

import os
import re
import subprocess
import venv
from pathlib import Path

import pytest
from packages import ROOT, copy_source

TESTS = Path(__file__).parent
ZOO = {
    "jpeg_compressibility", "jpeg_incompressibility", "clip", "aesthetic", "pickscore", "hpsv2", "hpsv2.1",
    "imagereward", "ocr", "safety", "lambda_harmonic", "vendi", "fid", "kid", "frames", "motion_smoothness",
    "dynamic_degree", "emoji_clip", "emoji_noisy_clip",
}  # fmt: skip


def run(*command: object) -> str:
    """What a program prints, without this environment's packages."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, cwd=TESTS, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_documents_list_the_same_rewards():
    text = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    table = text.split("## Which there are\n")[1].split("\n### ")[0]
    named = [
        re.findall(r"`([\w.]+)`", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `")
    ]
    assert {name for names in named for name in names} == ZOO


@pytest.mark.slow
def test_every_reward_is_made_in_one_clean_environment(tmp_path):
    """Takes minutes and a few GB: pip fetches torch and everything else from the index it is configured for."""
    venv.create(tmp_path / "clean", with_pip=True)
    python = tmp_path / "clean" / "bin" / "python"
    run(python, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, copy_source(tmp_path / "source"))
    (wheel,) = tmp_path.glob("*.whl")
    run(python, "-m", "pip", "install", f"{wheel}[rewards]")
    run(python, "-m", "pip", "check")
    place, *names = run(python, "every_reward.py").splitlines()
    assert Path(place).is_relative_to(tmp_path / "clean")
    assert {*names} == ZOO
