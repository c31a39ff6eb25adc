"""`diffalign search` on the packaged model: what it leaves, what it refuses, and that kills cost nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diffalign.folders.runfolder import RunFolder
from diffalign.folders.searchfolder import SearchFolder
from diffalign.policy import LoraSpec, Policy
from diffalign.registry import searches
from diffalign.searching.tree import Tree
from diffalign.settings import config
from tests.search.test_seek import same
from tests.test_cli import diffalign

pytestmark = pytest.mark.weights
TINY = [
    "model=emoji", "steps=2", "guidance_scale=2.0", "reward=jpeg_compressibility", "prompts=p.txt", "search.n=2",
    "prompts_at_once=2", "sample_batch=2",
]  # fmt: skip
NAN = """
import torch
def some(images, prompts):
    value = images.flatten(1).mean(1)
    return value.masked_fill((10_000 * value).long() % 4 == 0, torch.nan)
def none(images, prompts):
    return torch.full((len(prompts),), torch.nan)
def memory(images, prompts):
    if "dog" in prompts:
        raise torch.OutOfMemoryError("out of it")
    return images.flatten(1).mean(1)
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("red apple\nrocket\n3d sun\ndog\ntulip\n")
    Path("late.txt").write_text("sun\n" + "red apple " * 40)
    Path("nan.py").write_text(NAN)
    return tmp_path


def test_a_search_leaves_a_folder_with_a_gallery(capfd):
    command = [
        "search",
        "best_of_n",
        "--model",
        "emoji",
        "--reward",
        "emoji_clip:score=style",
        "--prompt",
        "red apple",
    ]
    code, text = diffalign(
        capfd, *command, "--prompt", "dog", "steps=2", "search.n=2", "eval_rewards={match: emoji_clip}"
    )
    assert code == 0, text
    assert "BestOfN(n=2) for 2 prompt(s) into searches/best_of_n" in text
    assert "gallery: searches/best_of_n/gallery.html" in text
    folder = Path("searches/best_of_n")
    kinds = ("config.yaml", "summary.json", "results.jsonl", "pictures/0001-dog.png", "pictures/0001-dog-first.png",
             "latents/0001-dog.safetensors", "gallery.html")  # fmt: skip
    assert [kind for kind in kinds if not (folder / kind).exists()] == []
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["cost"] == {"denoiser_calls": 8, "reward_calls": 4, "gradients": 0, "lost": 0}
    assert (set(summary["rewards"]), set(summary["eval_rewards"])) == ({"emoji_clip"}, {"match"})
    assert diffalign(capfd, *command, "steps=2", "search.n=1")[0] == 0
    assert Path("searches/best_of_n-2/gallery.html").exists()


EVERY = {
    "best_of_n": ["search.n=2"],
    "reno": ["model=emoji-turbo", "steps=1", "guidance_scale=1.0", "search.iterations=2"],
    "fk": ["steps=4", "search.particles=2"],
    "dts": ["steps=4", "search.rollouts=3"],
    "rl_guidance": ["adapter=lora"],
    "nrg": ["steps=4", "search.guide=emoji_noisy_clip"],
    "zo_rank_sgd": ["search.rounds=1", "search.queries=3", "search.top=1"],
}


@pytest.mark.parametrize("method", searches())
def test_every_method_runs_from_the_command_line_and_is_kept(capfd, tuned, method):
    plain = ["model=emoji", "steps=2", "guidance_scale=2.0", "reward=emoji_clip", "prompts=[red apple, dog]"]
    code, text = diffalign(capfd, "search", method, *plain, *EVERY[method], "--out", "s")
    assert code == 0, text
    folder = SearchFolder(Path("s"))
    for row in folder.results():
        assert row["scores"]["best"]["total"] >= row["scores"]["first"]["total"]
        assert row["cost"]["denoiser_calls"] > 0
        assert folder.tensors(row)["noise"].shape == (4, 16, 16)
    assert ('<svg class="tree"' in Path("s/gallery.html").read_text()) == (method == "dts")
    if method == "dts":
        assert len(Tree.load(Path("s") / row["extras"]["tree"])) == 3


def test_the_same_noise_and_score_by_hand(capfd):
    """What is kept can be drawn again: the found noise makes the found picture, and it scores what was said."""
    command = ["search", "best_of_n", *TINY, "rule=ode", "prompts=[red apple]", "--out", "s"]
    assert diffalign(capfd, *command)[0] == 0
    folder = SearchFolder(Path("s"))
    (row,) = folder.results()
    kept = folder.tensors(row)
    from diffalign.steps import ODE
    from diffalign.walk import walk

    policy = Policy.from_pretrained("emoji", steps=2, guidance_scale=2.0, lora=False)
    with torch.no_grad():
        *_, last = walk(policy, ODE(), kept["noise"][None], policy.encode(["red apple"]), [0])
    assert torch.allclose(last.next[0], kept["latents"], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["best_of_n", "--model", "emoji"], "2 problems in the command line"),
        (["best_of_m", *TINY], "Did you mean 'best_of_n'"),
        (["best_of_n", *TINY, "prompts=none.txt"], "the prompt file none.txt does not exist"),
        (["best_of_n", *TINY, "prompts=late.txt"], "this model takes"),
        (["best_of_n", *TINY, "--prompt", "a", "--prompts", "p.txt"], "--prompt and --prompts are both given"),
        (["emoji-best-of-n", "--prompt", "a"], "so is `prompts`"),
        (["best_of_n", *TINY, "model=./nowhere"], "no model folder './nowhere'"),
        (["best_of_n", *TINY, "adapter=nowhere"], "no LoRA weights in 'nowhere'"),
        (["reno", *TINY[:-3], "search.iterations=2"], "declare none: 'jpeg_compressibility'"),
        (["fk", *TINY[:-3], "steps=4", "rule=ode"], "Use rule 'ddim' with eta above 0"),
        (["dts", *TINY[:-3], "steps=4", "rule={name: ddim, eta: 0.0}"], "Use rule 'ddim' with eta above 0"),
        (["rl_guidance", *TINY[:-3], "search.w=2.0"], "Load a trained one first"),
        (["--resume", "nowhere"], "nowhere is not a search folder"),
        (["best_of_n", "--resume", "nowhere"], "is not a search folder"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_2_and_leaves_nothing(capfd, monkeypatch, arguments, expected):
    predicted: list[int] = []
    original = Policy.predict
    monkeypatch.setattr(Policy, "predict", lambda *a: predicted.append(1) or original(*a))
    code, text = diffalign(capfd, "search", *arguments)
    assert code == 2, text
    assert expected in text
    assert "Traceback" not in text
    assert not Path("searches").exists() or not any(Path("searches").iterdir())
    assert predicted == [], "nothing may be computed"


def test_particles_without_a_finite_reward_lose_and_are_counted(capfd):
    code, text = diffalign(
        capfd, "search", "best_of_n", *TINY, "reward=nan.py:some", "search.n=4", "--out", "s"
    )
    assert code == 0, text
    summary = json.loads(Path("s/summary.json").read_text())
    assert summary["cost"]["lost"] > 0
    assert f"{summary['cost']['lost']} scores were not finite" in Path("s/gallery.html").read_text()
    code, text = diffalign(capfd, "search", "best_of_n", *TINY, "reward=nan.py:none", "--out", "t")
    assert (code, "no sample of 2 prompt(s) got a finite reward" in text) == (3, True), text


def test_out_of_memory_keeps_what_is_finished(capfd):
    code, text = diffalign(capfd, "search", "best_of_n", *TINY, "reward=nan.py:memory", "--out", "s")
    assert code == 3
    assert "Lower prompts_at_once or sample_batch" in text
    assert "diffalign search --resume s prompts_at_once=1" in text
    assert SearchFolder(Path("s")).finished() == {0, 1}


def test_resuming_changes_no_result_and_takes_no_other_search(capfd):
    assert diffalign(capfd, "search", "best_of_n", *TINY, "--out", "s")[0] == 0
    shutil.copytree("s", "t")
    for lost in ("results/0001.json", "results/0004.json", "gallery.html"):
        (Path("t") / lost).unlink()
    assert "of another config (search" in diffalign(capfd, "search", "--resume", "t", "search.n=3")[1]
    assert "goes on with a folder's own search" in diffalign(capfd, "search", "fk", "--resume", "t")[1]
    code, text = diffalign(capfd, "search", "--resume", "t")
    assert code == 0, text
    assert same(Path("s"), Path("t"))
    assert Path("t/gallery.html").exists()
    assert "already holds" in diffalign(capfd, "search", "best_of_n", *TINY, "--out", "t")[1]


def test_rewards_on_the_scale_of_the_untuned_model(capfd):
    both = ["rewards=[jpeg_compressibility, nan.py:memory]", "prompts=[red apple, sun]", "calibrate=true"]
    command = ["search", "best_of_n", *TINY[:3], *both, "calibration_pictures=4", "combine=min", "--out", "s"]
    assert diffalign(capfd, *command)[0] == 0
    known = json.loads(Path("s/calibration.json").read_text())["statistics"]
    (row, _) = SearchFolder(Path("s")).results()
    best = row["scores"]["best"]
    scaled = [(best[k] - known[k]["mean"]) / known[k]["std"] for k in ("jpeg_compressibility", "memory")]
    assert best["total"] == pytest.approx(min(scaled), abs=1e-4)


def test_levels_of_prompts_are_measured_before_the_search(capfd):
    combine = ["combine={name: log_sigmoid, pictures: 2}", "prompts=[red apple, sun, red apple]"]
    code, text = diffalign(capfd, "search", "best_of_n", *TINY, *combine, "--out", "s")
    assert code == 0, text
    assert set(json.loads(Path("s/calibration.json").read_text())["levels"]) == {"red apple", "sun"}


@pytest.fixture
def tuned(tmp_path) -> Path:
    """A LoRA that does something, as `Policy.save` leaves it."""
    spec = LoraSpec(rank=2, alpha=4.0, targets=["to_q", "to_v"])
    policy = Policy.from_pretrained("emoji", steps=2, lora=spec)
    for parameter in policy.trainable():
        parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    policy.save(tmp_path / "lora")
    return tmp_path / "lora"


def test_an_adapter_is_what_is_searched_with(capfd, tuned):
    scores = {}
    for name, more in {
        "plain": [],
        "tuned": ["adapter=lora"],
        "rl": ["adapter=lora", "search={name: rl_guidance, w: 1.0}"],
    }.items():
        command = [
            "search",
            "best_of_n" if name != "rl" else "rl_guidance",
            *TINY,
            "prompts=[red apple]",
            "search.n=1",
        ]
        if name == "rl":
            command.remove("search.n=1")
            command.remove("search.n=2")
        code, text = diffalign(capfd, *command, *more, "--out", name)
        assert code == 0, text
        scores[name] = SearchFolder(Path(name)).results()[0]["scores"]["best"]["total"]
    assert scores["plain"] != scores["tuned"] == scores["rl"]


def test_a_run_s_folder_is_an_adapter(capfd, tuned):
    settings = config.load("emoji-ddpo", ["lora={rank: 2, alpha: 4.0, targets: [to_q, to_v]}"])
    RunFolder.create(Path("run"), settings.resolved())
    shutil.copytree(tuned, "run/lora")
    for name in ("run", "lora"):
        command = [
            "search",
            "best_of_n",
            *TINY,
            "prompts=[red apple]",
            f"adapter={name}",
            "--out",
            f"by-{name}",
        ]
        assert diffalign(capfd, *command)[0] == 0
    rows = [SearchFolder(Path(f"by-{name}")).results()[0] for name in ("run", "lora")]
    assert rows[0]["scores"] == rows[1]["scores"]


# -- real processes -------------------------------------------------------------------------------

MANY = ["best_of_n", *TINY, "prompts=emoji-heldout", "prompts_limit=10", "steps=4"]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "diffalign", "search", *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def interrupted(number: int, out: Path, *arguments: str) -> tuple[int, str]:
    """Send a signal once something more is finished; the exit code and what was printed."""
    before = len(list((out / "results").glob("[0-9]*.json")))
    process = start(*arguments)
    while len(list((out / "results").glob("[0-9]*.json"))) == before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    printed, errors = process.communicate(timeout=900)
    return process.returncode, printed + errors


@pytest.mark.slow
def test_killed_and_interrupted_it_goes_on_to_the_same_bits(here):
    whole, cut = here / "whole", here / "cut"
    assert start(*MANY, "--out", str(whole)).wait(timeout=900) == 0
    code, _ = interrupted(signal.SIGKILL, cut, *MANY, "--out", str(cut))
    assert code == -signal.SIGKILL
    finished = SearchFolder(cut).finished()
    assert 0 < len(finished) < 10
    for number in sorted(finished)[1:]:  # so that much is left to be interrupted
        (cut / "results" / f"{number:04d}.json").unlink()
    code, text = interrupted(signal.SIGINT, cut, "--resume", str(cut))
    assert (code, f"To go on: diffalign search --resume {cut}" in text, "Traceback" in text) == (
        130,
        True,
        False,
    ), text
    assert start("--resume", str(cut)).wait(timeout=900) == 0
    assert same(whole, cut)
    assert json.loads((cut / "summary.json").read_text())["finished"] == 10


@pytest.mark.slow
def test_launched_processes_share_the_prompts(here):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "diffalign"]
    done = subprocess.run(
        [*launch, "search", *MANY, "--out", "two"], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("for 10 prompt(s)") == done.stdout.count("gallery: ") == 1
    assert start(*MANY, "--out", str(here / "one")).wait(timeout=900) == 0
    assert same(here / "one", here / "two")
