"""The schema of the database: made, migrated by Alembic, or refused where it is newer than this diffalign."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from diffalign.errors import DiffalignError
from diffalign.preferences.database import Database

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "diffalign_schema"
_one_at_a_time = threading.Lock()
"""Alembic's environment is global to the process."""


def migrate(database: Database, migrations: Path = MIGRATIONS) -> None:
    """Bring the tables to the newest schema, all or nothing; a newer one than ours is refused."""
    config = Config()
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    with database.reading() as session:
        if _is_newest(session.connection(), script, database.name):
            return
    with _one_at_a_time, database.alone() as connection:
        if not _is_newest(connection, script, database.name):  # another process may have been faster
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _is_newest(connection: Connection, script: ScriptDirectory, name: str) -> bool:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    found = context.get_current_revision()
    _refuse_newer(name, found, script)
    return found == script.get_current_head()


def _refuse_newer(name: str, found: str | None, script: ScriptDirectory) -> None:
    known = [revision.revision for revision in script.walk_revisions()]
    if found is not None and found not in known:
        raise DiffalignError(
            f"the database {name} has schema {found}, which is newer than this diffalign knows (up to {known[0]}). "
            "Install a newer diffalign; the database was not touched."
        )
