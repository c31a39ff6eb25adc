"""A connection to SQLite or PostgreSQL whose acknowledged writes survive a kill."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session

from diffalign.errors import DiffalignError, RunError
from diffalign.preferences.faults import in_words

LOCK = 5_431_004
"""PostgreSQL's advisory lock that is held while the tables are made or migrated."""


class Database:
    """Sessions that read, and sessions that write one after the other.

    SQLite: WAL, so that readers never wait, and synchronous=FULL, so that a commit outlives power cuts;
    a writer takes its lock when it begins, because one taken later is refused at once, not waited for.
    """

    def __init__(self, where: str | Path, busy_seconds: float) -> None:
        url = parse(where)
        self.file = Path(str(url.database)) if url.get_backend_name() == "sqlite" else None
        self.name = str(self.file or url.render_as_string(hide_password=True))
        self._engine = _engine(url, busy_seconds)
        self._turn = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one state of the database."""
        with in_words(self.name), Session(self._engine) as session:
            yield session

    @contextmanager
    def writing(self, user: str = "") -> Iterator[Session]:
        """A session that is committed at its end; writes for one user come one after the other."""
        if self.file is None:
            with in_words(self.name), Session(self._engine) as session, session.begin():
                session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(user, 0))))
                yield session
        else:
            engine = self._engine.execution_options(writes=True)
            with self._turn, in_words(self.name), Session(engine) as session, session.begin():
                yield session

    @contextmanager
    def alone(self) -> Iterator[Connection]:
        """A connection whose transaction no other that is `alone` runs beside; it may rebuild tables."""
        engine = self._engine.execution_options(writes=True, rebuilds=True)
        with in_words(self.name), engine.begin() as connection:
            if self.file is None:
                connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
            yield connection
            if self.file and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").first()):
                raise RunError(f"{self.name} was left as it was: its rows would not fit together, {broken}.")

    def close(self) -> None:
        """Give back all connections."""
        self._engine.dispose()


def parse(where: str | Path) -> URL:
    """A path is an SQLite file; a URL names SQLite or PostgreSQL."""
    if isinstance(where, Path) or "://" not in where:
        return URL.create("sqlite", database=str(where))
    try:
        url = make_url(where)
    except (ArgumentError, ValueError) as error:
        raise _not_a_store(where) from error
    if url.drivername in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise _not_a_store(url.render_as_string(hide_password=True))
    return url


def _not_a_store(where: str) -> DiffalignError:
    return DiffalignError(
        f"votes cannot be stored in {where!r}. Give the path of a file (SQLite), or "
        "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE."
    )


def _engine(url: URL, busy_seconds: float) -> Engine:
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise DiffalignError("votes in memory would be lost; give the path of a file.")
        engine = create_engine(url, connect_args={"timeout": busy_seconds}, pool_timeout=busy_seconds)
        event.listen(engine, "connect", _configure)
        event.listen(engine, "begin", _begin)
        return engine
    try:
        engine = create_engine(url, pool_pre_ping=True, pool_timeout=busy_seconds)
    except ModuleNotFoundError as error:
        raise DiffalignError(
            "votes in PostgreSQL need the driver psycopg: pip install 'diffalign[demo]'."
        ) from error
    event.listen(engine, "connect", partial(_limit, busy_seconds))
    return engine


def _limit(busy_seconds: float, connection: Any, record: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = {round(1000 * busy_seconds)}")
    connection.commit()


def _configure(connection: Any, record: object) -> None:
    connection.isolation_level = None  # sqlite3 would begin transactions by itself, and too late
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    # a table that others point to is rebuilt by dropping it; within a transaction nothing can allow that
    connection.exec_driver_sql(f"PRAGMA foreign_keys={'OFF' if options.get('rebuilds') else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")
