"""A store on SQLite, and the same tests on PostgreSQL where DIFFALIGN_POSTGRES names a server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from place import Place, schema

from diffalign.preferences import Store


@pytest.fixture
def server() -> str:
    """The URL of a PostgreSQL that tests may do anything to."""
    url = os.environ.get("DIFFALIGN_POSTGRES")
    if not url:
        pytest.skip("DIFFALIGN_POSTGRES is not set; tests/postgres.sh COMMAND starts a server and sets it")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where an empty store may be made."""
    if request.param == "sqlite":
        yield Place(str(tmp_path / "votes.db"), tmp_path / "votes.pictures")
        return
    with schema(request.getfixturevalue("server"), tmp_path / "pictures") as own:
        yield own


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    store = place.open()
    yield store
    store.close()
