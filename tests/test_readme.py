"""README's section "Write your own reward", followed literally in an environment of its own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from packages import ROOT, Environment, copy_source
from test_cli import TINY

SMALL = [pair for pair in TINY if not pair.startswith("reward=")]
"""What makes a training run small; everything else is as the README says."""


def section(title: str) -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.split(f"### {title}\n")[1].split("\n##")[0]


def commands(text: str) -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


@pytest.mark.weights
def test_write_your_own_reward_works_as_written(tmp_path):
    environment = Environment(tmp_path / "venv")
    environment.install(str(copy_source(tmp_path / "source")))
    here = tmp_path / "here"
    here.mkdir()
    (here / "p.txt").write_text("red apple\ndog face\nrocket\n")
    (here / "h.txt").write_text("3d sun\n3d tulip\n")
    text = section("Write your own reward")
    ((name, code),) = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, re.DOTALL)
    (here / name).write_text(code)
    printed = [followed(environment, command, here) for command in commands(text)]
    assert len(printed) == 7
    assert any("diffalign-reward-my-redness 0.1.0" in said for said in printed)
    assert sum("report: runs/" in said for said in printed) == 2


def followed(environment: Environment, command: list[str], here: Path) -> str:
    """What a command of the README prints."""
    first, *rest = command
    if first == "pip":
        first, rest = str(environment.bin / "python"), ["-m", "pip", *rest]
    if rest[0] == "train":
        rest += SMALL
    done = environment.run(first, *rest, cwd=here)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
