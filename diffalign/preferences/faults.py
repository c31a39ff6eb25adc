"""What a database refuses, in words; whatever was acknowledged before stays."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError

from diffalign.errors import DiffalignError, RunError

SAYS: dict[tuple[str, ...], tuple[type[DiffalignError], str]] = {
    ("disk is full", "no space left", "could not extend file"): (
        RunError,
        "is full. Free some space, then go on",
    ),
    ("is locked", "lock timeout", "queuepool limit"): (
        RunError,
        "is locked by somebody else for too long. Close what holds it (a backup, another program), then try again",
    ),
    ("readonly", "read-only", "unable to open"): (
        RunError,
        "cannot be written or opened: it or its folder is read-only or missing, or belongs to another user. See "
        "to the permissions, then try again",
    ),
    ("not a database", "malformed", "file is encrypted"): (
        DiffalignError,
        "is not a database of votes, or is damaged. Give another file; this one was not touched",
    ),
    ("connection", "could not translate", "password", "server closed"): (
        RunError,
        "cannot be reached. See that the server runs, and that host, user and password in the URL are right",
    ),
}
"""What messages of databases contain -> the kind of error, and what to say of the database."""


@contextmanager
def in_words(name: str) -> Iterator[None]:
    """Turn the errors of SQLAlchemy and SQLite into ours; `name` is the database without its password."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise _error(name, error) from error


def _error(name: str, error: Exception) -> DiffalignError:
    told = str(error.orig if isinstance(error, StatementError) and error.orig else error).strip()
    if isinstance(error, DataError | IntegrityError):
        return DiffalignError(f"the database {name} refused this: {told}. Nothing was recorded.")
    for words, (kind, says) in SAYS.items():
        if any(word in told.lower() for word in words):
            return kind(f"the database {name} {says}. What was recorded before is untouched. ({told})")
    kind = RunError if isinstance(error, DBAPIError | sqlite3.Error) else DiffalignError
    return kind(f"the database {name} failed: {told}. What was recorded before is untouched.")
