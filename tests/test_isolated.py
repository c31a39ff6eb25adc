"""A reward in another Python that has another version of a package of ours; it lives as long as we do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import httpx2
import PIL
import pytest
import served
import torch

from diffalign.errors import DiffalignError, RunError
from diffalign.serving import isolated

OLD = "11.3.0"
PLUGIN = '''
"""Lives in the other environment only."""
import os, signal, sys
import PIL, torch

class Version:
    """The version of pillow there, as 11.3, and the process."""
    def __init__(self, times: float = 1.0):
        self.times = times
    def __call__(self, images, prompts, **metadata):
        from diffalign.reward import Scores
        if "die" in prompts:
            print("these are my last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        number = float(".".join(PIL.__version__.split(".")[:2]))
        here = torch.full((len(prompts),), float(os.getpid()))
        return Scores(self.times * number + 0 * here, {"pid": here})
'''
PARENT = """
import sys, time, torch
from diffalign.serving import isolated
reward = isolated.start(sys.argv[1], sys.argv[2], {})
pid = int(reward(torch.zeros(1, 3, 4, 4), [""]).parts["pid"])
print(pid, reward.stop.peek()[1].__self__.folder, flush=True)
time.sleep(1000)
"""
IMAGES = torch.zeros(2, 3, 4, 4)


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> str:
    """An environment with an old pillow of its own and a plug-in; everything else it borrows from ours."""
    folder = tmp_path_factory.mktemp("other")
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("lib/python3*/site-packages")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(site),
        f"pillow=={OLD}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pillow {OLD} cannot be installed here: {done.stderr[-300:]}")
    (site / "ours.pth").write_text(str(Path(torch.__file__).parents[1]))
    info = site / "venv_only-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: venv-only\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[diffalign.rewards]\nvenv_only = venv_only_rewards:Version\n")
    (site / "venv_only_rewards.py").write_text(PLUGIN)
    return str(folder / "bin" / "python")


def test_scores_come_from_the_other_version_and_close_ends_it(python):
    assert version("pillow") == PIL.__version__ != OLD
    reward = isolated.start(python, "venv_only", {"times": 2.0})
    try:
        scores = reward(IMAGES, ["a", "b"])
        torch.testing.assert_close(scores.value, torch.full((2,), 22.6))
        pid, process = int(scores.parts["pid"][0]), reward.stop.peek()[1].__self__
        assert pid == process.popen.pid != os.getpid()
        assert reward.remote
        assert os.getsid(pid) != os.getsid(0), "Ctrl-C would reach it"
        assert b"times" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert httpx2.get(f"{reward.exchange.url}/card").status_code == 401
    finally:
        reward.close()
    assert served.gone(pid)
    assert not process.folder.exists()
    reward.close()


def test_it_ends_when_its_parent_is_killed(python, tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, python, "mine.py:Version"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout
        pid, folder = parent.stdout.readline().split()
        assert not served.gone(int(pid))
        assert Path(folder).exists()
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert served.until(lambda: served.gone(int(pid)))
    assert served.until(lambda: not Path(folder).exists())


def test_when_it_dies_the_run_stops_at_once_and_hears_its_last_words(python):
    reward = isolated.start(python, "venv_only_rewards:Version", {})
    try:
        with pytest.raises(RunError, match="these are my last words") as caught:
            reward(IMAGES, ["a", "die"])
        assert "exit code -9" in str(caught.value)
        assert "resume" in str(caught.value)
        assert caught.value.exit_code == 3
    finally:
        reward.close()


def test_an_unknown_reward_is_said_by_the_other_side(python):
    with pytest.raises(DiffalignError, match="Did you mean 'venv_only'") as caught:
        isolated.start(python, "venv_onyl", {})
    assert caught.value.exit_code == 2


def test_what_raises_while_it_is_made_is_shown(python):
    with pytest.raises(DiffalignError, match="unexpected keyword argument 'tims'"):
        isolated.start(python, "venv_only", {"tims": 2.0})


def test_a_package_that_is_missing_there_is_named(tmp_path):
    venv.create(tmp_path, with_pip=False)
    with pytest.raises(
        DiffalignError, match=r"No module named 'torch'.* needs torch, numpy, pillow, fastapi"
    ):
        isolated.start(str(tmp_path / "bin" / "python"), "jpeg_compressibility", {})


def test_a_process_that_ended_before_it_was_told_what_to_do_can_be_stopped(tmp_path):
    popen = subprocess.Popen(["/bin/false"], stdin=subprocess.PIPE)
    popen.wait()
    isolated._tell(popen, {"name": "jpeg_compressibility"})
    isolated.Process("python", popen, tmp_path / "folder").stop()
    assert popen.stdin.closed


def test_what_is_no_interpreter_is_said():
    with pytest.raises(DiffalignError, match="/path/to/venv/bin/python"):
        isolated.start("/no/such/python", "jpeg_compressibility", {})
    with pytest.raises(DiffalignError, match="exit code 1"):
        isolated.start("/bin/false", "jpeg_compressibility", {})
