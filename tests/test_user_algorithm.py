"""An algorithm as a user writes it: one short file outside the package, trained with by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from diffalign.folders.runfolder import RunFolder

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "reinforce.py"


def test_one_file_outside_the_package_trains(tmp_path):
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) <= 60
    (tmp_path / "my_module.py").write_text(source)
    out = tmp_path / "run"
    overrides = [
        "algorithm=my_module:Reinforce", "reward=jpeg_compressibility", "steps=3", "rounds=2", "prompts_per_round=2",
        "images_per_prompt=2", "updates_per_round=1", "heldout_limit=2",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "diffalign", "train", "emoji-ddpo", *overrides, "--out", str(out)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = RunFolder.open(out).rows()
    assert len(rows) == 2
    assert rows[0]["ratio/mean"] == pytest.approx(1, abs=1e-6)
    assert rows[0]["grad_norm"] > 0
