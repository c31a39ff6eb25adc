"""`diffalign votes`: what is in a store, out of it and into another."""

from __future__ import annotations

import pytest
import torch

from diffalign.errors import DiffalignError
from diffalign.preferences import Store

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def where(tmp_path) -> str:
    """A store in which ann and bob prefer the tuned model."""
    store = Store.open(tmp_path / "votes.db")
    for n, user in enumerate(["ann", "ann", "bob"]):
        images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(n))
        ids = [
            store.pictures.add(i, prompt="sun", model=m)
            for i, m in zip(images, ("emoji", "tuned"), strict=True)
        ]
        store.vote(store.show(user, ids), user, "b")
    store.close()
    return str(tmp_path / "votes.db")


def command(*words: str) -> None:
    from diffalign.commands.cli import app

    app(list(words), standalone_mode=False)


def test_what_people_said_is_shown(where, capsys):
    command("votes", "show", where)
    said = capsys.readouterr().out
    assert "3 votes, 3 of them decided" in said
    assert said.index("tuned") < said.index("emoji")
    assert "3 of 3" in said
    assert "agreement is not known" in said


def test_votes_go_to_another_store_once(where, tmp_path, capsys):
    table, other = str(tmp_path / "votes.parquet"), str(tmp_path / "other.db")
    command("votes", "export", where, "--out", table)
    for _ in range(2):
        command("votes", "import", other, table)
    said = capsys.readouterr().out
    assert "3 rows" in said
    assert "3 new votes, 0 known" in said
    assert "0 new votes, 3 known" in said


def test_cleaning_keeps_what_was_voted_on(where, capsys):
    command("votes", "clean", where)
    assert "0 files removed" in capsys.readouterr().out
    store = Store.open(where)
    assert all(store.pictures.image(name).numel() for vote in store.votes() for name in vote.pictures)


def test_a_mistyped_store_is_not_made(tmp_path):
    with pytest.raises(DiffalignError, match="there is no store of votes"):
        command("votes", "show", str(tmp_path / "vote.db"))
    assert not list(tmp_path.iterdir())
