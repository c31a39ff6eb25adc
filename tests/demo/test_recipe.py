"""The recipe on a handful of pictures: every step runs, resumes bit-identically, and its parts fit together."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter

import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from diffalign_demo.emoji.recipe import __main__ as command
from diffalign_demo.emoji.recipe import clip, data, noisy_clip, unet, vae
from diffalign_demo.emoji.recipe.fit import Schedule, fit

THINGS = ["cat", "cat face", "dog face", "red heart", "blue heart", "fire", "car", "tree"]


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """Two folders shaped like the unpacked packages."""
    folder = tmp_path_factory.mktemp("packages")
    flat, fluent = folder / "flat/package/img/google/64", folder / "3d/package/assets"
    flat.mkdir(parents=True)
    fluent.mkdir(parents=True)
    table = [
        {
            "name": name.upper(),
            "unified": f"1F60{i}-FE0F",
            "image": f"1f60{i}-fe0f.png",
            "category": "Objects",
            "has_img_google": True,
        }
        for i, name in enumerate(THINGS)
    ]
    for i, entry in enumerate(table):
        colour = (30 * i, 255 - 30 * i, 90, 255)
        Image.new("RGBA", (64, 64), colour).save(flat / entry["image"])
        code = entry["unified"].lower() if i % 2 else entry["unified"].lower().replace("-fe0f", "")
        if i != 6:
            Image.new("RGBA", (256, 256), (*colour[:3], 0)).save(fluent / f"{code}.webp")
    table += [table[0] | {"name": "FLAG FOR X", "category": "Flags"}, table[1] | {"has_img_google": False}]
    (folder / "flat/package/emoji.json").write_text(json.dumps(table))
    return folder


@pytest.fixture
def small(monkeypatch):
    for module in (vae, unet):
        monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(clip, "NAMES", 4)
    monkeypatch.setattr(noisy_clip, "BATCH", 4)


@pytest.fixture(scope="module")
def out(downloads, tmp_path_factory):
    """Pictures and prompts made from the two folders."""
    folder = tmp_path_factory.mktemp("out")
    data.build(folder, downloads)
    return folder


def test_data_finds_both_styles_lays_on_white_and_leaves_out_flags(out):
    rows = pq.read_table(out / "pictures.parquet").to_pylist()
    assert Counter(row["style"] for row in rows) == {"flat": 8, "3d": 7}
    assert [row["name"] for row in rows if row["style"] == "flat"] == THINGS
    images, rows = data.arrays(out / "pictures.parquet")
    see_through = [i for i, row in enumerate(rows) if row["style"] == "3d"]
    assert images[see_through].min() == 255
    assert images[0, 32, 32].tolist() == pytest.approx([0, 255, 90], abs=6)


def toy():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    return model, lambda generator: (model(torch.randn(8, 3, generator=generator)) - 1).square().mean()


def weights(model):
    return torch.cat([value.flatten().float() for value in model.state_dict().values()])


def test_fit_lowers_the_loss(tmp_path):
    model, loss = toy()
    before = loss(torch.Generator().manual_seed(0))
    fit(model, loss, Schedule(steps=100, rate=1e-2, warmup=5, decay=0.9), tmp_path)
    assert loss(torch.Generator().manual_seed(0)) < 0.5 * before


def test_an_interrupted_fit_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    schedule = Schedule(steps=9, rate=1e-2, save_every=4)
    whole, loss = toy()
    fit(whole, loss, schedule, tmp_path / "whole")
    model, loss = toy()
    calls = iter(range(6))

    def dying(generator):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return loss(generator)

    with pytest.raises(KeyboardInterrupt):
        fit(model, dying, schedule, tmp_path / "parts")
    model, loss = toy()
    fit(model, loss, schedule, tmp_path / "parts")
    assert torch.equal(weights(model), weights(whole))


def test_a_fit_can_be_made_longer_before_it_cools_down(tmp_path):
    rates = [
        [Schedule(steps=steps, rate=1.0, warmup=10).rate_at(step) for step in range(60)]
        for steps in (100, 500)
    ]
    assert rates[0] == rates[1]
    assert Schedule(steps=100, rate=1.0).rate_at(99) < 0.03


@pytest.mark.usefixtures("small")
def test_every_training_step_runs_and_the_parts_form_a_pipeline(out, tmp_path):
    for step in ("vae", "unet", "clip", "noisy_clip"):
        command.run(step, out, tmp_path, steps=2)
    codes = vae.latents(
        StableDiffusionPipeline.from_pretrained(out / "base").vae,
        torch.from_numpy(data.arrays(out / "pictures.parquet")[0]),
    )
    assert codes.shape == (15, 4, 16, 16)
    assert codes.std() == pytest.approx(1, abs=0.01)
    pipeline = StableDiffusionPipeline.from_pretrained(out / "base")
    assert pipeline("3d cat", num_inference_steps=2).images[0].size == (64, 64)
    model = open_clip.create_model(f"local-dir:{out / 'clip'}")
    assert model.encode_image(torch.zeros(2, 3, 64, 64)).shape == (2, 128)
    assert set(json.loads((out / "clip/card.json").read_text())) >= {"style", "flat_image_to_text_top1"}
    assert int(load_file(tmp_path / "unet/state.safetensors")["step"]) == 2
    assert set(load_file(out / "noisy_clip/model.safetensors")) == set(noisy_clip.NoisyTower().state_dict())
    assert list(json.loads((out / "noisy_clip/card.json").read_text())) == [str(x) for x in noisy_clip.LEVELS]


def test_the_noisy_tower_learns_what_the_clean_picture_s_features_will_be():
    """Two kinds of pictures, whose latents are all 1 or all -1: told apart through noise, and not beyond it."""
    torch.manual_seed(0)
    sign = torch.tensor([1.0, -1.0]).repeat(32)
    features = F.one_hot((sign < 0).long(), 128).float()
    seen = noisy_clip.Pictures(sign[:, None, None, None].expand(64, 4, 16, 16).contiguous(), features)
    captions = noisy_clip.Captions(features[:2], (sign < 0).long()[:, None].expand(64, 2))
    tower = noisy_clip.NoisyTower(widths=(16, 16, 16))
    optimizer = torch.optim.Adam(tower.parameters(), 3e-3)
    for step in range(40):
        optimizer.zero_grad()
        noisy_clip.loss(tower, seen, captions, 10.0, torch.Generator().manual_seed(step)).backward()
        optimizer.step()
    noise = torch.randn(64, 4, 16, 16, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        for angle, low, high in ((0.3, 0.9, 1.0), (0.5 * math.pi, 0.3, 0.7)):
            level = torch.full((64,), angle)
            found = tower(noisy_clip.noisy(seen.latents, noise, level), level.cos(), level.sin())
            right = ((found[:, 0] > found[:, 1]) == (sign > 0)).float().mean()
            assert low <= float(right) <= high


@pytest.mark.usefixtures("small")
def test_a_training_can_go_on_from_other_weights(out, tmp_path):
    for step in ("vae", "unet"):
        command.run(step, out, tmp_path, steps=2)
    start = StableDiffusionPipeline.from_pretrained(out / "base")
    shutil.copytree(out / "base", tmp_path / "start")
    for step in ("vae", "unet"):
        command.run(step, out, tmp_path / "again", steps=1, rate=1e-9, start=tmp_path / "start")
    again = StableDiffusionPipeline.from_pretrained(out / "base")
    for part in ("vae", "unet", "text_encoder"):
        for a, b in zip(getattr(start, part).parameters(), getattr(again, part).parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)  # random weights differ by 1e-2 and more
    assert str(tmp_path) not in (out / "base/unet/config.json").read_text()


def test_captions_lose_their_style_word_or_all_words_as_often_as_said():
    rows = [{"style": "3d", "name": "cat"}]
    captions = unet.Captions(clip.words.tokenizer(["3d", "cat"]), rows)
    drawn = captions.draw(torch.zeros(20_000, dtype=torch.long), torch.Generator().manual_seed(0))
    share = {
        name: float((drawn == ids).all(1).float().mean())
        for name, ids in (("plain", captions.plain), ("empty", captions.empty), ("styled", captions.styled))
    }
    assert share == pytest.approx({"plain": 0.4, "empty": 0.1, "styled": 0.5}, abs=0.015)  # 4 standard errors


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [(["data", "--steps", "3"], "vae, unet, clip"), (["clip", "--start", "base"], "vae, unet, not")],
)
def test_an_option_of_another_step_is_refused(arguments, allowed, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main([*arguments, "--out", "x"])
    assert allowed in capsys.readouterr().err
