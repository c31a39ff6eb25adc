"""The command line: quick help, clear errors without a traceback, and runs that can be gone on with."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from diffalign import __version__, registry
from diffalign.commands import cli
from diffalign.folders.runfolder import RunFolder
from diffalign.settings import config

TINY = [
    "steps=2", "rule.quiet_last=1",
    "rounds=2", "prompts_per_round=2", "images_per_prompt=2", "updates_per_round=1", "sample_batch=4",
    "micro_batch=8", "heldout_limit=2", "eval_every=1", "checkpoint_every=1", "trackers=[]", "diversity=null",
    "reward=jpeg_compressibility", "eval_rewards=jpeg_incompressibility", "prompts=p.txt", "heldout_prompts=h.txt",
]  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("red apple\ndog face\nrocket\n")
    Path("h.txt").write_text("3d sun\n3d tulip\n")
    Path("rewards_here.py").write_text(
        "import torch\n"
        "def nan(images, prompts): return torch.full((len(prompts),), float('nan'))\n"
        "def wide(images, prompts): return torch.zeros(len(prompts), 2)\n"
        "def none(images, prompts): pass\n"
        "def broken(images, prompts): return images.no_such_thing\n"
    )
    Path("typo.py").write_text("class Mine\n")
    return tmp_path


def diffalign(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and what was printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["diffalign", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.run()
    printed = capfd.readouterr()
    return int(stop.value.code or 0), printed.out + printed.err


def test_help_answers_within_a_second():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "diffalign", "--help"], capture_output=True, text=True, check=True
        )
        seconds.append(time.perf_counter() - start)
    assert "doctor" in done.stdout
    assert min(seconds) < 1


def test_version_and_list(capfd):
    assert diffalign(capfd, "--version") == (0, f"{__version__}\n")
    code, text = diffalign(capfd, "list")
    assert code == 0
    assert {*registry.configs(), "d3po", "jpeg_compressibility", "flow_sde", "animals"} <= set(text.split())


def test_copy_gives_a_config_to_edit_and_overwrites_nothing(capfd):
    assert diffalign(capfd, "copy", "sd15-d3po", ".")[0] == 0
    assert yaml.safe_load(Path("sd15-d3po.yaml").read_text())["algorithm"]["name"] == "d3po"
    code, text = diffalign(capfd, "copy", "sd15-d3po", ".")
    assert (code, "exists already" in text) == (2, True)
    assert "Did you mean 'sd15-d3po'" in diffalign(capfd, "copy", "sd15-d3pp", ".")[1]
    assert "make it first" in diffalign(capfd, "copy", "animals", "no/where.txt")[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "say which config"),
        (["emoji-d3p"], "Did you mean 'emoji-d3po'"),
        (["emoji-d3po", "stepps=3"], "Did you mean 'steps'"),
        (["emoji-d3po", "--resume", "nowhere"], "is not a run folder"),
        (["emoji-d3po", *TINY, "model=./no-such-folder"], "no model folder './no-such-folder'"),
        (["emoji-d3po", *TINY, "prompts=empty.txt"], "has no prompts"),
        (["emoji-d3po", *TINY, "prompts=none.txt"], "does not exist"),
        (["emoji-d3po", *TINY, "algorithm=typo.py:Mine"], "SyntaxError: expected ':' (typo.py, line 1)"),
        (["emoji-d3po", *TINY, 'algorithm.beta="0.5"'], "valid number; got '0.5' (str)"),
    ],
)
def test_bad_input_ends_with_2_and_a_message(capfd, arguments, expected):
    Path("empty.txt").write_text("\n")
    code, text = diffalign(capfd, "train", *arguments)
    assert code == 2
    assert expected in text
    assert "Traceback" not in text
    assert not Path("runs/emoji-d3po").exists()


@pytest.mark.parametrize("plugin", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
@pytest.mark.parametrize("command", ["train", "doctor"])
def test_plugins_of_accelerate_are_refused(capfd, monkeypatch, plugin, command):
    monkeypatch.setenv(f"ACCELERATE_USE_{plugin}", "true")
    code, text = diffalign(capfd, command, "emoji-d3po", *TINY)
    assert code == 2
    assert f"accelerate is configured for {plugin}" in text
    assert "single process" in text


def test_doctor_names_the_nearest_config(capfd):
    code, text = diffalign(capfd, "doctor", "emoji-d3p")
    assert (code, "Did you mean 'emoji-d3po'" in text) == (2, True), text


def test_what_sample_cannot_do_is_said_before_a_model_is_loaded(capfd):
    RunFolder.create(Path("run"), config.load("emoji-d3po").resolved())
    code, text = diffalign(capfd, "sample", "run", "--prompt", "x", "--out", "x.foo")
    assert (code, "end its name in .png, .webp" in text) == (2, True), text
    Path("run/config.yaml").write_text("model: [emoji\n")
    code, text = diffalign(capfd, "sample", "run", "--prompt", "x", "--out", "x.png")
    assert (code, "run/config.yaml is not readable YAML" in text) == (2, True), text
    Path("run/config.yaml").write_text("emoji\n")
    for command in (
        ["sample", "run", "--prompt", "x", "--out", "x"],
        ["train", "emoji-d3po", "--resume", "run"],
    ):
        code, text = diffalign(capfd, *command)
        assert (code, "run/config.yaml holds no config, but 'emoji'" in text) == (2, True), text


def test_an_unknown_option_is_bad_input_too(capfd):
    assert diffalign(capfd, "train", "--resum", "x")[0] == 2


@pytest.mark.weights
@pytest.mark.parametrize(
    ("change", "code", "expected"),
    [
        ("prompts=late.txt", 2, "this model takes"),
        ("heldout_prompts=late.txt", 2, "this model takes"),
        ("steps=2000", 2, "StableDiffusionPipeline does not take steps=2000"),
        ("call={eta: 0.5}", 2, "'eta' is set by diffalign itself"),
        ("lora.targets=nothing", 2, "fits no layer"),
        ("reward=rewards_here.py:nan", 3, "must be finite"),
        ("reward=rewards_here.py:wide", 3, "returned shape"),
        ("reward=rewards_here.py:none", 3, "reward 'none' returned NoneType"),
        ("reward=rewards_here.py:broken", 3, "reward 'broken' raised AttributeError"),
    ],
)
def test_faults_of_a_run_are_named(capfd, change, code, expected):
    Path("late.txt").write_text("sun\n" + "red apple " * 40)
    found, text = diffalign(capfd, "train", "emoji-d3po", *TINY, "prompts_per_round=1", change)
    assert found == code
    assert expected in text
    assert Path("runs/emoji-d3po").exists() == (code == 3)


@pytest.mark.weights
def test_train_resume_and_sample(capfd, here):
    code, text = diffalign(capfd, "train", "emoji-d3po", *TINY)
    assert code == 0, text
    run = here / "runs" / "emoji-d3po"
    assert "report: runs/emoji-d3po/report.html" in text
    assert "2 prompts x 2 pictures a round" in text
    kinds = ("config.yaml", "metrics.jsonl", "summary.json", "report.html", "lora", "samples/000-base.png")
    assert all((run / kind).exists() for kind in kinds)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((run / "summary.json").read_text())["rounds"] == 2

    assert diffalign(capfd, "train", "emoji-d3po", *TINY)[0] == 0
    assert (here / "runs" / "emoji-d3po-2" / "report.html").exists()

    code, text = diffalign(capfd, "train", "--resume", "runs/emoji-d3po", "lr=1.0")
    assert (code, "another config (lr: 0.0" in text) == (2, True), text
    shutil.rmtree(run / "checkpoints")  # killed before the first one: still the same run
    assert diffalign(capfd, "train", "emoji-ddpo", "--resume", str(run))[0] == 2

    for extra, name in (([], "a.png"), (["--base"], "b.png"), (["--best"], "c.png")):
        assert diffalign(capfd, "sample", str(run), "--prompt", "red apple", "--out", name, *extra)[0] == 0
    both = diffalign(capfd, "sample", str(run), "--prompt", "x", "--out", "d.png", "--base", "--best")
    assert (both[0], "two different models" in both[1]) == (2, True)
    a, b = (Image.open(name) for name in ("a.png", "b.png"))
    assert a.size == b.size == (64, 64)
    assert a.tobytes() != b.tobytes()
    assert diffalign(capfd, "sample", str(run), "--prompt", "x", "--prompt", "y", "--out", "many.png")[0] == 0
    assert Path("many-001.png").exists()


@pytest.mark.weights
def test_doctor_measures_and_estimates(capfd):
    code, text = diffalign(capfd, "doctor", "emoji-ddpo", *TINY)
    assert code == 0, text
    assert re.search(r"ratio, same batch\s+0\.0e\+00", text)
    for line in (
        "predict: ",
        "ratio, micro-batches",
        "round trip",
        "a round",
        "peak memory",
        "the whole run",
        "ready",
    ):
        assert line in text


@pytest.mark.weights
def test_a_fault_has_no_traceback_and_no_library_noise():
    command = [sys.executable, "-m", "diffalign", "train", "emoji-d3po", *TINY, "reward=rewards_here.py:nan"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3
    assert "must be finite" in done.stderr
    assert "Traceback" not in done.stderr
    assert "it/s" not in done.stderr


@pytest.mark.weights
@pytest.mark.slow
def test_ctrl_c_saves_the_round_and_says_how_to_go_on(here):
    command = [sys.executable, "-m", "diffalign", "train"]
    started = subprocess.Popen(
        [*command, "emoji-d3po", *TINY, "rounds=500", "eval_every=500", "--out", "run"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not any(here.glob("run/checkpoints/round-*")):
        assert started.poll() is None
        time.sleep(0.1)
    started.send_signal(signal.SIGINT)
    out, err = started.communicate(timeout=120)
    assert started.returncode == 130, err
    assert "diffalign train --resume run" in out
    assert "Traceback" not in err
    rows = len((here / "run" / "metrics.jsonl").read_text().splitlines())
    assert (here / "run" / "checkpoints" / f"round-{rows:04d}").is_dir()


@pytest.mark.weights
@pytest.mark.slow
def test_two_launched_processes_make_one_run(here):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "diffalign"]
    command = [*launch, "train", "emoji-d3po", *TINY, "--out", "run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("on 2 process(es)") == done.stdout.count("report: ") == 1
    assert len((here / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((here / "run" / "summary.json").read_text())["rounds"] == 2


def test_a_run_without_any_noise_is_refused(capfd, tmp_path):
    code, text = diffalign(
        capfd, "train", "emoji-d3po", *TINY, "rule.quiet_last=2", "--out", str(tmp_path / "run")
    )
    assert code == 2
    assert "no step of DDIM(eta=1.0, quiet_last=2) is stochastic" in text
