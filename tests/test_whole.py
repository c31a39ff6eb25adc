"""A folder appears whole, or what was there before stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffalign.folders.whole import appearing


def test_a_folder_takes_the_place_of_the_one_before_when_it_is_full(tmp_path):
    folder = tmp_path / "lora"
    for word in ("one", "two"):
        with appearing(folder) as part:
            (part / word).write_text(word)
            assert not (folder / word).exists()
        assert [path.name for path in folder.iterdir()] == [word]
    assert list(tmp_path.iterdir()) == [folder]


def test_an_error_between_the_two_renames_brings_the_old_one_back(tmp_path, monkeypatch):
    folder, rename = tmp_path / "lora", Path.rename
    with appearing(folder) as part:
        (part / "one").touch()

    def refuse(path, target):
        if path.name.endswith(".part"):
            raise OSError("no space")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no space"), appearing(folder):
        pass
    assert [path.name for path in folder.iterdir()] == ["one"]
    assert list(tmp_path.iterdir()) == [folder]


def test_what_goes_wrong_while_it_is_filled_leaves_the_one_before(tmp_path):
    folder = tmp_path / "lora"
    with appearing(folder) as part:
        (part / "one").touch()
    with pytest.raises(FileNotFoundError), appearing(folder) as part:
        (part / "there is no folder" / "two").touch()
    assert [path.name for path in folder.iterdir()] == ["one"]
    assert list(tmp_path.iterdir()) == [folder]
