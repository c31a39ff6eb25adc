"""Searches for many prompts: portions, processes, kills and resumed runs, faults, and what is kept of each prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from diffalign.errors import DiffalignError, RunError
from diffalign.folders.pictures import read
from diffalign.folders.searchfolder import SearchFolder
from diffalign.launching.launch import faults
from diffalign.launching.seek import Seeker
from diffalign.pages import outcome
from diffalign.rewarding.compose import composed
from diffalign.search import Found, Search, Task
from diffalign.search.best_of_n import BestOfN
from tests.toys import Chain, ChainPolicy

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = ["red apple", "dog face", "red apple", "a rocket, 3d", "sun"]
RULE = Chain((0.9, 0.8), (0.3, 0.2))


class Painter(ChainPolicy):
    """A chain whose samples are pictures, or films, of 4 x 4 pixels."""

    def __init__(self, frames: int = 1) -> None:
        super().__init__(2, frames * 48)
        self.frames = frames

    def decode(self, latents: Tensor) -> Tensor:
        pixels = latents.sigmoid().reshape(len(latents), self.frames, 3, 4, 4)
        return pixels[:, 0] if self.frames == 1 else pixels


def bright(images: Tensor, prompts: list[str]) -> Tensor:
    return images.flatten(1).mean(1)


bright.video = True


def seeker(folder: Path, **changes: Any) -> Seeker:
    made = (
        SearchFolder(folder) if (folder / "config.yaml").exists() else SearchFolder.create(folder, {"a": 1})
    )
    given = {
        "method": BestOfN(3), "policy": Painter(), "rule": RULE, "reward": composed(bright), "prompts": PROMPTS,
        "folder": made, "at_once": 2, "batch": 4, "about": {"model": "toy", "eval_rewards": {}},
    }  # fmt: skip
    return Seeker(**given | changes)


def searched(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    made = seeker(folder, **changes)
    made.run()
    return made.folder.collect()


def tensors(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {file.name: load_file(file) for file in sorted((folder / "latents").glob("*.safetensors"))}


def same(a: Path, b: Path) -> bool:
    """Whether two folders hold the same bits: latents, pictures and scores."""
    ours, theirs = tensors(a), tensors(b)
    pictures = [sorted((f.name, f.read_bytes()) for f in (p / "pictures").iterdir()) for p in (a, b)]
    plain = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in SearchFolder(p).results()] for p in (a, b)
    ]
    assert ours.keys() == theirs.keys()
    return (
        all(torch.equal(ours[f][k], theirs[f][k]) for f in ours for k in ours[f])
        and [name for name, _ in pictures[0]] == [name for name, _ in pictures[1]]
        and plain[0] == plain[1]
    )


# -- what is kept ---------------------------------------------------------------------------------


def test_every_prompt_leaves_pictures_noise_scores_path_and_cost(tmp_path):
    rows = searched(tmp_path / "s")
    assert [row["prompt"] for row in rows] == PROMPTS
    for row in rows:
        assert row["cost"] == {"denoiser_calls": 6, "reward_calls": 3, "gradients": 0, "lost": 0}
        assert [mark["denoiser_calls"] for mark in row["path"]] == [2, 4, 6]
        assert row["path"][0]["best"] == row["scores"]["first"]["total"]
        assert row["path"][-1]["best"] == row["scores"]["best"]["total"] >= row["scores"]["first"]["total"]
        kept = SearchFolder(tmp_path / "s").tensors(row)
        assert set(kept) == {"noise", "latents", "first_latents"}
        picture = read(tmp_path / "s" / row["pictures"]["best"])
        assert bright(picture[None], [""]).item() == pytest.approx(row["scores"]["best"]["reward"], abs=3e-3)
        assert torch.equal(picture, (Painter().decode(kept["latents"][None])[0] * 255).round() / 255)


def test_the_kept_noise_makes_the_kept_sample(tmp_path):
    rows = searched(tmp_path / "s", rule=Chain((0.9, 0.8), (0.0, 0.0)))
    kept = SearchFolder(tmp_path / "s").tensors(rows[3])
    assert torch.allclose(kept["latents"], kept["noise"] * 0.9 * 0.8)


def test_a_picture_tells_where_it_comes_from(tmp_path):
    rows = searched(tmp_path / "s", prompts=["ein Bär, 3d"])
    with Image.open(tmp_path / "s" / rows[0]["pictures"]["best"]) as picture:
        notes = picture.text
    assert notes["Description"] == "ein Bär, 3d"
    told = json.loads(notes["diffalign"])
    assert told["model"] == "toy"
    assert told["scores"] == rows[0]["scores"]
    assert told["cost"]["denoiser_calls"] == 6


def test_results_are_one_line_each(tmp_path):
    rows = searched(tmp_path / "s")
    lines = (tmp_path / "s" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["scores"] for line in lines] == [row["scores"] for row in rows]


def test_names_of_files_are_safe(tmp_path):
    prompts = ["../../etc: a|b?", "x" * 500, "日本語の絵", "!!!"]
    rows = searched(tmp_path / "s", prompts=prompts)
    names = [row["pictures"]["best"] for row in rows]
    assert names == ["pictures/0000-etc-a-b.png", f"pictures/0001-{'x' * 40}.png", "pictures/0002-日本語の絵.png",
                     "pictures/0003.png"]  # fmt: skip


def test_videos_are_animations_and_scored_as_videos(tmp_path):
    rows = searched(tmp_path / "s", policy=Painter(frames=3), prompts=["a", "b"])
    assert read(tmp_path / "s" / rows[0]["pictures"]["first"]).shape == (3, 3, 4, 4)


def test_other_rewards_judge_before_and_after(tmp_path):
    rows = searched(
        tmp_path / "s", watched={"dark": lambda images, prompts: -bright(images, prompts)},
        about={"eval_rewards": {"dark": {}}},
    )  # fmt: skip
    for row in rows:
        for tag in ("first", "best"):
            assert row["scores"][tag]["dark"] == pytest.approx(-row["scores"][tag]["reward"])
    found = outcome.summary(rows, 5)
    assert found["eval_rewards"]["dark"]["gain"] == pytest.approx(-found["reward"]["gain"])
    ours, theirs = found["reward"]["gain_ci"], found["eval_rewards"]["dark"]["gain_ci"]
    assert (ours[0], ours[1]) == pytest.approx((-theirs[1], -theirs[0]))


class Whole:
    def score_set(self, images: Tensor, prompts: list[str]) -> float:
        return float(images.mean()) * len(images)


def test_rewards_of_whole_sets_judge_all_pictures_at_the_end(tmp_path):
    rows = searched(tmp_path / "s", watched={"whole": Whole()})
    assert "whole" not in rows[0]["scores"]["best"]
    found = outcome.conclude(SearchFolder(tmp_path / "s"), {"whole": Whole()}, 5)
    assert found["sets"]["whole"]["best"] == pytest.approx(5 * found["reward"]["best"], abs=0.02)
    assert json.loads((tmp_path / "s" / "summary.json").read_text()) == json.loads(json.dumps(found))


def test_the_curve_is_the_mean_of_steps(tmp_path):
    marks = [[(2, 1.0), (4, 3.0)], [(2, 0.0), (6, 4.0)]]
    rows = [{"path": [{"denoiser_calls": c, "best": b} for c, b in path]} for path in marks]
    found = outcome.path(rows)
    assert [(p["denoiser_calls"], p["best"]) for p in found] == [(2, 0.5), (4, 1.5), (6, 3.5)]


# -- portions, processes, kills -------------------------------------------------------------------


def test_portions_and_processes_change_nothing(tmp_path):
    searched(tmp_path / "one", at_once=5)
    searched(tmp_path / "many", at_once=2)
    for rank in (1, 0):
        made = seeker(tmp_path / "two", rank=rank, processes=2)
        assert made.left == (2 if rank else 3)
        made.run()
    assert same(tmp_path / "many", tmp_path / "two")
    for ours, theirs in zip(
        tensors(tmp_path / "one").values(), tensors(tmp_path / "many").values(), strict=True
    ):
        assert all(torch.allclose(ours[k], theirs[k], atol=1e-6) for k in ours)


def test_the_same_prompt_twice_gets_two_samples_wherever_portions_end(tmp_path):
    for at_once in (1, 5):
        rows = searched(tmp_path / str(at_once), at_once=at_once)
        assert rows[0]["prompt"] == rows[2]["prompt"]
        assert rows[0]["scores"] != rows[2]["scores"]


@dataclass
class Stops(BestOfN):
    """Ends as a kill, or full memory, would: in the middle of the third portion."""

    error: Any = KeyboardInterrupt

    def search(self, task: Task) -> Found:
        if "sun" in task.prompts:
            raise self.error
        return super().search(task)


def test_an_interrupted_search_goes_on_to_the_same_bits(tmp_path):
    searched(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        seeker(tmp_path / "cut", method=Stops(3)).run()
    assert SearchFolder(tmp_path / "cut").finished() == {0, 1, 2, 3}
    (tmp_path / "cut" / "results" / "0001.json").unlink()  # killed while a portion was written
    (tmp_path / "cut" / "results" / ".0001.part.json").write_text('{"number": 1, "pro')
    assert seeker(tmp_path / "cut").portions() == [[0, 1], [4]]
    assert seeker(tmp_path / "cut").left == 2
    searched(tmp_path / "cut")
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert seeker(tmp_path / "cut").portions() == []


def test_out_of_memory_says_what_to_lower_and_keeps_what_is_finished(tmp_path):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
    with (
        pytest.raises(RunError, match="Lower prompts_at_once or sample_batch") as caught,
        faults("diffalign search --resume s prompts_at_once=1", "prompts_at_once or sample_batch"),
    ):
        seeker(tmp_path / "s", method=Stops(3, error=error)).run()
    assert "gradient_checkpointing" in str(caught.value)
    assert caught.value.exit_code == 3
    assert SearchFolder(tmp_path / "s").finished() == {0, 1, 2, 3}
    searched(tmp_path / "s", at_once=1)
    assert len(SearchFolder(tmp_path / "s").results()) == 5


def test_a_full_disk_is_a_fault_of_the_run(tmp_path, monkeypatch):
    made = seeker(tmp_path / "s")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match=r"No space left on device.*resume"):
        made.run()


# -- scores that are not finite -------------------------------------------------------------------


def broken_for(text: str, share: float) -> Any:
    """Half of the pictures of one prompt, or all of them, score nan."""

    def reward(images: Tensor, prompts: list[str]) -> Tensor:
        value = images.flatten(1).mean(1)
        bad = torch.tensor([prompt == text for prompt in prompts]) & (value > share)
        return value.masked_fill(bad, torch.nan)

    return reward


def test_samples_without_a_finite_reward_lose_and_are_counted(tmp_path):
    rows = searched(tmp_path / "s", reward=composed(broken_for("sun", 0.5)), method=BestOfN(8))
    lost = [row["cost"]["lost"] for row in rows]
    assert lost[:4] == [0, 0, 0, 0]
    assert 0 < lost[4] < 8
    assert rows[4]["scores"]["best"]["total"] <= 0.5
    found = outcome.summary(rows, 5)
    assert found["cost"]["lost"] == lost[4]


def test_a_first_sample_that_lost_counts_in_no_mean(tmp_path):
    rows = searched(tmp_path / "s", reward=composed(broken_for("sun", 0.5)), method=BestOfN(8), seed=3)
    for row in rows:
        row["scores"]["first"]["total"] = None if row["number"] == 4 else 0.25
    found = outcome.summary(rows, 5)["reward"]
    assert found["first"] == 0.25
    assert found["gain"] == pytest.approx(sum(r["scores"]["best"]["total"] - 0.25 for r in rows[:4]) / 4)


def test_a_prompt_that_no_sample_of_scores_is_named(tmp_path):
    with pytest.raises(RunError, match=r"no sample of 1 prompt\(s\) got a finite reward, the first 'sun'"):
        searched(tmp_path / "s", reward=composed(broken_for("sun", -1.0)))
    assert SearchFolder(tmp_path / "s").finished() == {0, 1, 2, 3}


# -- methods and models ---------------------------------------------------------------------------


@dataclass
class Refuses(Search):
    def check(self, task: Task) -> None:
        raise DiffalignError(f"not with {task.rule}")

    def search(self, task: Task) -> Found:
        raise AssertionError("nothing may be computed")


def test_what_a_method_refuses_is_said_before_anything_is_computed(tmp_path):
    made = seeker(tmp_path / "s", method=Refuses())
    with pytest.raises(DiffalignError, match="not with Chain"):
        made.check()
    assert made.policy.denoiser_calls == 0


class Kept:
    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "own.txt").write_text("here")


@dataclass
class Shows(BestOfN):
    def search(self, task: Task) -> Found:
        found = super().search(task)
        for k, extra in enumerate(found.extras):
            extra |= {
                "kept": Kept(),
                "weights": torch.full((2,), float(k)),
                "nodes": [{"parent": -1, "value": float("nan")}],
            }
        return found


def test_what_a_method_shows_is_kept_whatever_it_is(tmp_path):
    rows = searched(tmp_path / "s", method=Shows(2), prompts=["a", "b"])
    extras = rows[1]["extras"]
    assert (tmp_path / "s" / extras["kept"] / "own.txt").read_text() == "here"
    assert extras["nodes"] == [{"parent": -1, "value": None}]
    assert SearchFolder(tmp_path / "s").tensors(rows[1])[extras["weights"]["name"]].tolist() == [1.0, 1.0]


def test_another_model_draws_once_more_from_the_found_noise(tmp_path):
    other = Painter()
    other.delta.data.fill_(0.5)
    rows = searched(tmp_path / "s", decoder=other, rule=Chain((0.9, 0.8), (0.0, 0.0)), prompts=["a"])
    assert set(rows[0]["pictures"]) == set(rows[0]["scores"]) == {"first", "best", "decoded"}
    assert rows[0]["scores"]["decoded"] != rows[0]["scores"]["best"]
    assert rows[0]["cost"] == {"denoiser_calls": 6, "reward_calls": 3, "gradients": 0, "lost": 0}
    assert outcome.summary(rows, 1)["reward"]["decoded"] == rows[0]["scores"]["decoded"]["total"]


def test_a_model_with_other_latents_cannot_draw_from_the_noise(tmp_path):
    with pytest.raises(DiffalignError, match=r"latents of shape \(96,\)"):
        seeker(tmp_path / "s", decoder=Painter(frames=2)).check()


def test_the_bar_hears_of_every_scored_sample(tmp_path):
    heard: list[tuple[int, float]] = []
    done: list[int] = []
    rows = searched(tmp_path / "s", hear=lambda n, best: heard.append((n, best)), finished=done.append)
    assert len(heard) == 15
    assert done == [0, 1, 2, 3, 4]
    last = dict(heard)
    assert [last[k] for k in range(5)] == [row["scores"]["best"]["total"] for row in rows]


class Beside:
    """How much brighter a picture is than the others of its prompt."""

    def score_group(self, images: Tensor, prompt: str) -> Tensor:
        light = images.flatten(1).mean(1)
        return light - light.mean()


def test_a_reward_that_compares_pictures_is_refused(tmp_path):
    with pytest.raises(DiffalignError, match="compares all pictures of a prompt"):
        BestOfN(3)(Painter(), PROMPTS, Beside(), rule=RULE)
    with pytest.raises(DiffalignError, match="compares all pictures of a prompt"):
        seeker(tmp_path, reward=composed(Beside())).check()
