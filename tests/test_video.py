"""A video model trained on rewards of its frames and of its motion, from the config to the report."""

from __future__ import annotations

import base64
import io
import re

import pytest
import torch
import yaml
from PIL import Image

from diffalign.folders.runfolder import RunFolder
from diffalign.launching import launch
from diffalign.pages import report
from diffalign.training.evaluate import middle

from .families.base import PROMPTS
from .families.video import CLIP, wan

CONFIG = {
    "steps": 3,
    "guidance_scale": 5.0,
    "call": {key: CLIP[key] for key in ("height", "width", "num_frames", "max_sequence_length")},
    "rule": {"name": "flow_sde", "noise_level": 0.7},
    "lora": {"rank": 2},
    "algorithm": "d3po",
    "rewards": [
        {"name": "frames", "reward": {"name": "emoji_clip", "score": "match"}, "reduce": "min"},
        {"name": "motion_smoothness", "weight": 5.0},
    ],
    "eval_rewards": ["dynamic_degree"],
    "rounds": 1,
    "prompts_per_round": 2,
    "images_per_prompt": 2,
    "eval_every": 1,
    "trackers": [],
    "lr": 1e-3,
}


def clips(page: str) -> list[Image.Image]:
    """The animations of a report."""
    encoded = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in encoded]


def test_a_report_shows_clips_that_move(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {"model": "wan", "algorithm": {"name": "d3po"}})
    video = torch.linspace(0, 1, 5)[None, :, None, None, None].expand(1, 5, 3, 40, 640)
    for tag in ("base", "final"):
        folder.save_samples(tag, video, ["a bar"])
    shown = clips(report.write(folder).read_text(encoding="utf-8"))
    assert [clip.n_frames for clip in shown] == [5, 5]
    assert shown[0].size == (320, 20)
    assert shown[0].info["loop"] == 0
    greys = []
    for number in range(5):
        shown[0].seek(number)
        greys.append(shown[0].convert("L").getpixel((5, 5)))
    assert greys == pytest.approx([0, 64, 128, 191, 255], abs=3)


def test_the_still_of_a_video_is_its_middle_frame():
    video = torch.rand(2, 5, 3, 4, 4)
    assert torch.equal(middle(video), video[:, 2])
    assert middle(video[:, 0]).shape == (2, 3, 4, 4)


def test_a_video_model_learns_from_its_frames_and_its_motion(tmp_path, one_thread):
    wan().save_pretrained(tmp_path / "wan")
    (tmp_path / "train.txt").write_text("\n".join(PROMPTS[:2]))
    (tmp_path / "heldout.txt").write_text("\n".join(PROMPTS[2:]))
    files = {"prompts": "train.txt", "heldout_prompts": "heldout.txt", "model": "wan"}
    (tmp_path / "wan.yaml").write_text(
        yaml.safe_dump(CONFIG | {k: str(tmp_path / v) for k, v in files.items()})
    )

    page = launch.train(str(tmp_path / "wan.yaml"), [], str(tmp_path / "run"), None, lambda line: None)

    run = RunFolder.open(tmp_path / "run")
    (row,) = run.rows()
    for label in ("frames", "motion_smoothness"):
        assert 0 < abs(row[f"reward/{label}/mean"]) < 2
        assert row[f"reward/{label}/std"] > 0
    assert row["heldout/dynamic_degree/mean"] >= 0
    assert 0 <= run.summary()["diversity"]["base"] <= 2
    assert any(bool(w.any()) for w in weights(tmp_path / "run"))
    shown = clips(page.read_text(encoding="utf-8"))
    assert len(shown) == 4
    assert max(clip.n_frames for clip in shown) == CLIP["num_frames"]


def weights(folder) -> list[torch.Tensor]:
    """The LoRA's `up` matrices, which start at zero."""
    from safetensors.torch import load_file

    return [
        w
        for file in (folder / "lora").rglob("*.safetensors")
        for k, w in load_file(file).items()
        if "lora_B" in k
    ]
