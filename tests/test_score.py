"""`diffalign score`: files, folders and videos with their prompts in, scores out."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import diffalign

from diffalign import registry
from diffalign.folders import pictures

CODE = """
def bright(images, prompts): return images.flatten(1).mean(1)
def words(images, prompts, times: int = 1, among: list[str] = []):
    return images[:, 0, 0, 0] * 0 + times * len(prompts[0])
class Film:
    video = True
    def __call__(self, images, prompts): return images.mean((1, 2, 3, 4)) * 0 + images.shape[1]
class Spread:
    def score_set(self, images, prompts): return images.flatten(1).mean(1).var()
class Place:
    def score_group(self, images, prompt): return images.mean((1, 2, 3)) - images.mean()
"""
GREY = {"a.png": 0.2, "b.png": 0.4, "wide.png": 0.6}


def grey(level, width=8):
    return Image.fromarray(np.full((8, width, 3), round(level * 255), np.uint8))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.py").write_text(CODE)
    Path("in/deep").mkdir(parents=True)
    grey(0.2).save("in/a.png")
    grey(0.4).save("in/b.png")
    grey(0.6, width=20).save("in/deep/wide.png")


def scored(capfd, *arguments):
    code, text = diffalign(capfd, "score", *arguments, "--format", "json", "--out", "out.json")
    assert code == 0, text
    return [
        (Path(row["file"]).name, row["prompt"], row["scores"])
        for row in json.loads(Path("out.json").read_text())
    ]


def test_a_folder_of_several_sizes_keeps_its_order(capfd):
    rows = scored(capfd, "in", "--prompt", "red", "--reward", "r.py:bright")
    assert [name for name, *_ in rows] == list(GREY)
    assert [scores["bright"] for *_, scores in rows] == pytest.approx(list(GREY.values()), abs=1e-6)
    assert {prompt for _, prompt, _ in rows} == {"red"}


def test_one_prompt_each_and_one_picture_at_a_time(capfd):
    rows = scored(capfd, "in/b.png", "in/a.png", "--prompt", "x", "--prompt", "yyy", "--batch", "1",
                  "--reward", "r.py:words")  # fmt: skip
    assert rows == [("b.png", "x", {"words": 1.0}), ("a.png", "yyy", {"words": 3.0})]


@pytest.mark.parametrize("table", ["p.csv", "p.jsonl"])
def test_prompts_from_a_table(capfd, table):
    Path("p.csv").write_text('file,prompt\nin/b.png,"two, or three"\nin/a.png,one\n')
    Path("p.jsonl").write_text(
        '{"file": "in/b.png", "prompt": "two, or three"}\n{"file": "in/a.png", "prompt": "one"}\n'
    )
    both = [("b.png", "two, or three"), ("a.png", "one")]
    assert [row[:2] for row in scored(capfd, "--prompts", table, "--reward", "r.py:bright")] == both
    assert [
        row[:2] for row in scored(capfd, "in/a.png", "--prompts", table, "--reward", "r.py:bright")
    ] == both[1:]
    code, text = diffalign(capfd, "score", "in", "--prompts", table, "--reward", "r.py:bright")
    assert (code, "no prompt for in/deep/wide.png" in text) == (2, True)


def test_every_way_to_write_a_reward(capfd):
    Path("more.yaml").write_text("twice: {name: 'r.py:words', times: 2}\n")
    rows = scored(
        capfd, "in/a.png", "--prompt", "abc", "--reward", "r.py:words:times=5,among=[a,b],label=five",
        "--reward", "{name: 'r.py:words', times: 3, label: three}", "--reward", "more.yaml",
    )  # fmt: skip
    assert rows[0][2] == {"five": 15.0, "three": 9.0, "twice": 6.0}


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_animations_are_videos(capfd, kind):
    frames = [grey(k / 4) for k in range(4)]
    frames[0].save(f"film.{kind}", save_all=True, append_images=frames[1:], lossless=True)
    rows = scored(
        capfd,
        f"film.{kind}",
        "--prompt",
        "",
        "--reward",
        "r.py:Film",
        "--reward",
        "frames:reward=r.py:bright",
    )
    assert rows[0][2]["Film"] == 4.0
    assert rows[0][2]["frames"] == pytest.approx(0.375, abs=0.01)


def test_video_files_are_read_by_pyav(tmp_path):
    av = pytest.importorskip("av")
    with av.open("film.mp4", "w") as film:
        stream = film.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        for k in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40 * k, np.uint8), format="rgb24")
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
    frames = pictures.read(Path("film.mp4"))
    assert pictures.size(Path("film.mp4")) == (5, 32, 32)
    torch.testing.assert_close(frames.mean((1, 2, 3)), torch.arange(5) * 40 / 255, atol=0.03, rtol=0)


def test_sets_get_one_more_row_and_groups_their_own_pictures(capfd):
    named = ["in/a.png", "in/b.png", "--prompt", "x", "--reward"]
    *_, (name, _, scores) = scored(capfd, *named, "r.py:Spread")
    assert name == "all 2"
    assert scores["Spread"] == pytest.approx(0.02, abs=1e-3)
    rows = scored(capfd, *named, "r.py:Place", "--batch", "1")
    assert [scores["Place"] for *_, scores in rows] == pytest.approx([-0.1, 0.1], abs=1e-3)


def test_what_cannot_be_read_is_named_and_the_rest_kept(capfd):
    Path("in/broken.png").write_text("no picture")
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save("whole.png")
    Path("in/cut.png").write_bytes(Path("whole.png").read_bytes()[:3000])
    code, text = diffalign(
        capfd,
        "score",
        "in",
        "missing.png",
        "--prompt",
        "",
        "--reward",
        "r.py:bright",
        "--format",
        "csv",
        "--out",
        "o.csv",
    )
    assert code == 2
    for name in ("in/broken.png cannot be read", "in/cut.png cannot be read", "missing.png does not exist"):
        assert name in text
    with open("o.csv") as rows:
        assert [Path(row["file"]).name for row in csv.DictReader(rows)] == list(GREY)


def test_pictures_are_seen_as_a_viewer_shows_them(tmp_path):
    picture = Image.new("RGBA", (6, 4), (255, 0, 0, 0))
    picture.save("clear.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    grey(0.5, width=20).save("turned.jpg", exif=turned)
    assert bool((pictures.read(Path("clear.png")) == 1).all())
    assert pictures.read(Path("turned.jpg")).shape == (3, 20, 8)
    assert pictures.size(Path("turned.jpg")) == (20, 8)


def test_a_table_is_shown(capfd):
    code, text = diffalign(capfd, "score", "in/a.png", "--prompt", "red", "--reward", "r.py:bright")
    assert code == 0
    assert "0.2000" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["in", "--reward", "r.py:bright"], "3 pictures and 0 prompts"),
        (["in", "--prompt", "a", "--prompt", "b", "--reward", "r.py:bright"], "3 pictures and 2 prompts"),
        (["in", "--prompt", ""], "say with which"),
        (["in", "--prompt", "", "--reward", "emoji_clap"], "Did you mean 'emoji_clip'"),
        (["in", "--prompt", "", "--reward", "r.py:words:times=many"], "times"),
        (["in", "--prompt", "", "--reward", "r.py:bright", "--format", "xml"], "unknown format"),
        (["in", "--prompt", "", "--reward", "r.py:Spread"], "2 sizes"),
        (["in", "--prompt", "", "--reward", "r.py:bright", "--reward", "r.py:bright"], "another `label`"),
        (["r", "--prompt", "", "--reward", "none.yaml"], "none.yaml does not exist"),
    ],
)
def test_bad_input_is_refused_in_words(capfd, arguments, said):
    code, text = diffalign(capfd, "score", *arguments)
    assert code == 2
    assert said in " ".join(text.split())
    assert "Traceback" not in text


def test_the_alias_is_hpsv2_with_its_version(monkeypatch):
    maker = registry.reward_maker("hpsv2.1")
    assert list(registry.parameters(maker)) == ["path", "antialias"]
    assert registry.reward_class("hpsv2.1") is registry.reward_class("hpsv2")
