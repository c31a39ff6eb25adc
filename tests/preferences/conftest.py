"""A store on SQLite, and the same tests on PostgreSQL where DIFFALIGN_POSTGRES names a server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from place import Place
from sqlalchemy import create_engine, make_url, text

from diffalign.preferences import Store


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where an empty store may be made."""
    if request.param == "sqlite":
        yield Place(str(tmp_path / "votes.db"), tmp_path / "votes.pictures")
        return
    server = os.environ.get("DIFFALIGN_POSTGRES")
    if not server:
        pytest.skip("DIFFALIGN_POSTGRES is not set; tests/postgres.sh COMMAND starts a server and sets it")
    schema = f"test_{uuid.uuid4().hex}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
        url = make_url(server).update_query_dict({"options": f"-csearch_path={schema}"})
        yield Place(url.render_as_string(hide_password=False), tmp_path / "pictures")
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    engine.dispose()


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    store = place.open()
    yield store
    store.close()
