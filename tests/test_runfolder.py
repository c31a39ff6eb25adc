"""A run's folder: rows survive kills, samples open as pictures, nothing of a run is overwritten."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from diffalign.errors import DiffalignError, RunError
from diffalign.folders.runfolder import RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", {"model": "emoji", "lr": 1e-3, "mixed_precision": "no"})


def test_config_comes_back(folder):
    assert RunFolder.open(folder.path).config() == {"model": "emoji", "lr": 1e-3, "mixed_precision": "no"}


def test_a_finished_or_saved_run_is_not_overwritten(folder):
    again = RunFolder.create(folder.path, {"model": "emoji"})
    again.write_summary({"gain_sd": 1.0})
    with pytest.raises(DiffalignError, match="already holds a run"):
        RunFolder.create(folder.path, {})


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(DiffalignError, match="is not a run folder"):
        RunFolder.open(tmp_path)


def test_rows_survive_a_kill_and_are_cut_on_resume(folder):
    for number in range(4):
        folder.log({"round": number, "kl": number / 3, "heldout/diversity": float("nan")})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "kl": 1.')
    assert [row["round"] for row in folder.rows()] == [0, 1, 2, 3]
    folder.cut(2)
    folder.log({"round": 2, "kl": 9.0})
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2]
    assert folder.rows()[1] == {"round": 1, "kl": 1 / 3, "heldout/diversity": None}


def test_pictures_are_what_was_given(folder):
    images = torch.rand(3, 3, 8, 10)
    folder.save_samples("base", images, ["a", "b", "ü"])
    folder.save_samples("round-0005", images, ["a", "b", "ü"])
    names = sorted(p.name for p in folder.samples.glob("*.png"))
    assert names == ["000-base.png", "001-base.png", "002-base.png", "grid-base.png", "grid-round-0005.png"]
    with Image.open(folder.samples / "001-base.png") as picture:
        assert picture.getpixel((7, 3)) == tuple((images[1, :, 3, 7] * 255).round().int().tolist())
    assert folder.prompts() == ["a", "b", "ü"]


def test_video_becomes_an_animation(folder):
    folder.save_samples("final", torch.rand(2, 5, 3, 8, 8), ["a", "b"])
    with Image.open(folder.samples / "000-final.png") as picture:
        assert picture.n_frames == 5


def test_a_folder_that_cannot_be_written_is_a_run_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="could not write"):
        RunFolder.create(tmp_path / "file" / "run", {})
