"""Weights are found at a path or in the local cache; else the error says what to do."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from diffalign.reward import DiffalignError
from diffalign_rewards import _weights


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def fill(cache, repo: str, *names: str):
    """What `hf download` leaves there."""
    home = cache / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("abc")
    (home / "snapshots" / "abc").mkdir(parents=True)
    for name in names:
        (home / "snapshots" / "abc" / name).write_text("")
    return home / "snapshots" / "abc"


def test_a_file_is_found_in_the_cache_or_at_its_path(cache, tmp_path):
    found = fill(cache, "someone/model", "weights.pt") / "weights.pt"
    assert _weights.file("x", "someone/model", "weights.pt") == found
    (own := tmp_path / "own.pt").write_text("")
    assert _weights.file("x", "someone/model", "weights.pt", str(own)) == own


def test_a_folder_is_found_in_the_cache_or_at_its_path(cache, tmp_path):
    found = fill(cache, "someone/model", "config.json", "model.safetensors")
    assert _weights.folder("x", "someone/model", ("config.json", "*.safetensors")) == found
    (tmp_path / "config.json").write_text("")
    assert _weights.folder("x", "someone/model", "config.json", str(tmp_path)) == tmp_path


@pytest.mark.parametrize("path", [None, "/no/such/place"])
def test_a_missing_file_says_what_to_fetch_and_where_to_put_it(cache, path):
    with pytest.raises(DiffalignError) as raised:
        _weights.file("thing", "someone/model", "weights.pt", path, option="head")
    where = path or str(cache)
    for part in ("thing needs weights.pt", where, "`hf download someone/model weights.pt`", "head: FILE"):
        assert part in str(raised.value)


@pytest.mark.parametrize("path", [None, "/no/such/place"])
def test_a_missing_folder_says_what_to_fetch_and_where_to_put_it(cache, path):
    with pytest.raises(DiffalignError, match=r"`hf download someone/model`, .* path: FOLDER"):
        _weights.folder("thing", "someone/model", "config.json", path)


def test_an_incomplete_folder_names_what_it_lacks(cache):
    fill(cache, "someone/model", "config.json")
    with pytest.raises(DiffalignError, match=r"thing needs vocab\.json"):
        _weights.folder("thing", "someone/model", ("config.json", "vocab.json"))


def test_what_cannot_be_read_is_named():
    with pytest.raises(DiffalignError, match=r"x\.pt does not hold a head, or is damaged: one two"):  # noqa: SIM117
        with _weights.reading("x.pt", "a head"):
            raise ValueError("one\n  two")
