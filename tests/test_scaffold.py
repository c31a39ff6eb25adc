"""`diffalign reward new` refuses what would not work, and leaves what is there alone."""

from __future__ import annotations

import pytest

from diffalign.authoring.scaffold import create
from diffalign.errors import DiffalignError


@pytest.mark.parametrize("name", ["", "My", "my-glow", "1st", "a__b", "_a", "class", "a b", "../up", "ä"])
def test_names_that_python_or_pip_would_refuse_are_refused(name, tmp_path):
    with pytest.raises(DiffalignError, match="cannot be the name of a reward"):
        create(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_taken_are_refused(tmp_path):
    with pytest.raises(DiffalignError, match="there is a reward 'clip' already"):
        create("clip", tmp_path)


def test_an_existing_folder_is_left_as_it_is(tmp_path):
    folder = create("my_glow", tmp_path)
    (folder / "README.md").write_text("mine")
    with pytest.raises(DiffalignError, match="exists already"):
        create("my_glow", tmp_path)
    assert (folder / "README.md").read_text() == "mine"
