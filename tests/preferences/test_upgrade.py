"""Votes outlive an upgrade of their database, also one that is killed. The step that it takes is in `further/`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from place import pair, picture, voted
from sqlalchemy import inspect, text

from diffalign.errors import DiffalignError
from diffalign.preferences.events import stamp
from diffalign.preferences.schema import MIGRATIONS, VERSION_TABLE, migrate
from diffalign.preferences.tables import Answer

UPGRADE = """
import sys
from pathlib import Path
from diffalign.preferences.database import Database
from diffalign.preferences.schema import migrate
migrate(Database(sys.argv[1], 30.0), Path(sys.argv[2]))
"""


@pytest.fixture
def newer(tmp_path) -> Path:
    """The migrations of a later version: ours and one more."""
    folder = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, folder)
    shutil.copy(Path(__file__).parent / "further" / "v0002_rooms.py", folder / "versions")
    return folder


@pytest.fixture
def votes(store):
    """Votes on pairs and a ranking, between what was undone and skipped."""
    for n, choice in enumerate(["a", "b", "tie", "both_bad", "a"]):
        voted(store, "ann", choice, pair(store, n), token=f"t{n}", seconds=n / 4)
    store.undo("ann")
    store.skip(store.show("bob", pair(store)), "bob")
    ids = [picture(store, n) for n in range(4)]
    store.vote(store.show("Bob é", ids, "ranking"), "Bob é", [ids[2], ids[0]])
    assert len(store.votes()) == 5
    return store.votes()


def asked(place, question):
    """The first column of what the database answers."""
    with place.engine().connect() as connection:
        return list(connection.scalars(text(question)))


def version(place):
    return asked(place, f"SELECT version_num FROM {VERSION_TABLE}")


def columns(place):
    return {column["name"] for column in inspect(place.engine()).get_columns("showings")}


def test_votes_outlive_an_upgrade_and_people_go_on(store, place, votes, newer):
    with ThreadPoolExecutor(4) as at_once:
        list(at_once.map(lambda _: migrate(store.database, newer), range(4)))
    assert version(place) == ["0002"]
    assert asked(place, "SELECT room FROM showings ORDER BY id") == ["hall"] * 6 + ["attic"]
    assert store.votes() == votes
    voted(store, "ann", "b", pair(store, 9))
    assert store.undo("ann").choice == "b"
    assert store.undo("ann") == votes[3]
    assert store.votes() == [*votes[:3], votes[4]]


def test_after_an_upgrade_answers_still_belong_to_showings(store, place, votes, newer):
    migrate(store.database, newer)
    if place.sqlite:
        assert asked(place, "PRAGMA foreign_key_check") == []
    with pytest.raises(DiffalignError, match="refused this"), store.database.writing() as session:
        session.add(Answer(showing_id=999, attempt=0, choice="a", token="x", **stamp()))
    assert store.votes() == votes


def test_the_version_before_leaves_an_upgraded_database_alone(store, place, votes, newer):
    migrate(store.database, newer)
    with pytest.raises(DiffalignError, match=r"schema 0002, which is newer than this diffalign knows"):
        place.open()
    assert store.votes() == votes


def test_a_killed_upgrade_leaves_the_version_before(store, place, votes, newer):
    upgrade = [sys.executable, "-c", UPGRADE, place.where, str(newer)]
    killed = subprocess.run(upgrade, env={**os.environ, "KILLED_HALFWAY": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert version(place) == ["0001"]
    assert "room" not in columns(place)
    again = place.open()
    voted(again, "cid", "a", pair(again, 7))
    again.close()
    subprocess.run(upgrade, check=True)
    assert version(place) == ["0002"]
    assert "room" in columns(place)
    assert store.votes()[:-1] == votes
    assert store.votes()[-1].user == "cid"
