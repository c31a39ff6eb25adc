"""Pictures and trajectories come back as they were added, and nothing else can be read as one."""

from __future__ import annotations

import os
import re

import pytest
import torch
from place import picture, trajectory

from diffalign.errors import DiffalignError, RunError
from diffalign.preferences import Pictures


@pytest.fixture
def pictures(tmp_path):
    return Pictures(tmp_path / "pictures")


def add(pictures, value=0.5, **more):
    return pictures.add(torch.full((3, 4, 4), value), **({"prompt": "a cat", "model": "base"} | more))


def test_a_picture_comes_back(pictures):
    image = torch.randint(0, 256, (3, 5, 7)) / 255
    name = pictures.add(image, prompt="ein Käfer 🐞", model="tuned@3", seed=7)
    assert re.fullmatch("[0-9a-f]{64}", name)
    torch.testing.assert_close(pictures.image(name), image)
    info = pictures.info(name)
    assert (info.prompt, info.model, info.seed, info.trajectory) == ("ein Käfer 🐞", "tuned@3", 7, None)


def test_the_same_picture_is_kept_once_and_another_model_makes_another(pictures):
    assert add(pictures) == add(pictures) != add(pictures, model="tuned")
    assert len(list(pictures.folder.iterdir())) == 2


def test_a_trajectory_comes_back(pictures):
    one = trajectory(seed=3)
    again = pictures.trajectory(add(pictures, trajectory=one))
    assert torch.equal(again.states, one.states)
    assert torch.equal(again.log_probs, one.log_probs)
    assert again.cond.state_dict().keys() == one.cond.state_dict().keys()


def test_pictures_of_one_prompt_and_noise_are_one_group_again(pictures):
    made = [("a cat", 0), ("a dog", 0), ("a cat", 0), ("a cat", 1)]
    rows = [trajectory(prompt, x_T, seed=n) for n, (prompt, x_T) in enumerate(made)]
    names = [
        add(pictures, n / 9, prompt=p, trajectory=r)
        for n, ((p, _), r) in enumerate(zip(made, rows, strict=True))
    ]
    joined = pictures.trajectories(names)
    assert joined.group.tolist() == [0, 1, 0, 2]
    assert joined.prompts == [prompt for prompt, _ in made]
    assert torch.equal(joined.states, torch.cat([row.states for row in rows]))


def test_d3po_is_told_which_pictures_have_no_trajectories(pictures):
    with pytest.raises(DiffalignError, match=r"D3PO needs trajectories.*made to judge models, or elsewhere"):
        pictures.trajectories([add(pictures)])


def test_what_is_no_picture_is_not_kept(pictures):
    for wrong in (
        torch.zeros(1, 4, 4),
        torch.zeros(4, 4),
        torch.full((3, 4, 4), 1.5),
        torch.full((3, 4, 4), torch.nan),
    ):
        with pytest.raises(DiffalignError, match=r"\(3, H, W\) with values in \[0, 1\]"):
            pictures.add(wrong, prompt="a cat", model="base")
    with pytest.raises(DiffalignError, match="a prompt is text"):
        add(pictures, prompt="")
    with pytest.raises(DiffalignError, match="of one row, not 2"):
        add(pictures, trajectory=trajectory()[[0, 0]])
    assert list(pictures.folder.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "file:///etc/passwd", "..", "", None, 3,
     "a" * 32 + "/" + "a" * 31, "a" * 64 + ".png", "\0" * 64],
)  # fmt: skip
def test_only_ids_become_paths(pictures, name):
    for read in (pictures.path, pictures.read, pictures.info, pictures.image, pictures.trajectory):
        with pytest.raises(DiffalignError, match="is not the id of a picture"):
            read(name)
    with pytest.raises(DiffalignError, match="is not the id of a picture"):
        pictures.touch([name])


def test_a_link_is_not_followed(pictures, tmp_path):
    name = add(pictures, trajectory=trajectory())
    for suffix, read in ((".safetensors", pictures.trajectory), (".png", pictures.read)):
        elsewhere = tmp_path / f"elsewhere{suffix}"
        pictures.path(name, suffix).rename(elsewhere)
        pictures.path(name, suffix).symlink_to(elsewhere)
        with pytest.raises(RunError, match="cannot be read"):
            read(name)


def test_a_changed_file_is_not_read(pictures):
    name, other = add(pictures, trajectory=trajectory()), add(pictures, 0.1)
    states = pictures.path(name, ".safetensors")
    states.write_bytes(states.read_bytes()[:-1] + b"!")
    with pytest.raises(RunError, match="damaged"):
        pictures.trajectory(name)
    os.link(pictures.path(other), pictures.folder / "x")
    (pictures.folder / "x").replace(pictures.path(name))
    with pytest.raises(RunError, match="damaged"):
        pictures.image(name)


def test_a_missing_file_is_said_and_votes_stay(store):
    one, other = picture(store, 0), picture(store, 1)
    shown, late = store.show("ann", [one, other]), store.show("ann", [one, other])
    store.vote(shown, "ann", "a")
    store.pictures.path(other).unlink()
    for act in (
        lambda: store.vote(late, "ann", "b"),
        lambda: store.show("ann", [one, other]),
        lambda: store.pictures.image(other),
    ):
        with pytest.raises(RunError, match=f"{other}.png is missing.*Votes are untouched"):
            act()
    assert [vote.choice for vote in store.votes()] == ["a"]
