"""Databases are made and migrated to the newest schema, and newer ones are left alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from place import pair, voted
from sqlalchemy import text

from diffalign.errors import DiffalignError
from diffalign.preferences.schema import VERSION_TABLE
from diffalign.preferences.tables import Base


def test_migrations_make_what_the_program_expects(store, place):
    with place.engine().connect() as connection:
        opts = {"version_table": VERSION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=opts), Base.metadata) == []


def test_opened_again_nothing_changes(store, place):
    voted(store, "ann", "a", pair(store))
    again = place.open()
    assert again.votes() == store.votes()
    again.close()


def test_a_newer_schema_is_refused_and_left_alone(store, place):
    voted(store, "ann", "a", pair(store))
    with place.engine().begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(
        DiffalignError, match=r"schema 9999, which is newer than this diffalign knows \(up to 0"
    ):
        place.open()
    assert store.count() == 1


def test_a_database_from_before_the_first_migration_gets_all_of_them(place):
    """An empty database, as a PostgreSQL server hands it out, also while several open it."""
    with ThreadPoolExecutor(6) as many:
        stores = list(many.map(lambda _: place.open(), range(6)))
    voted(stores[0], "ann", "a", pair(stores[0]))
    assert [store.count() for store in stores] == [1] * 6
    for store in stores:
        store.close()


def test_other_tables_in_the_database_do_not_matter(place):
    with place.engine().begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('of another program')"))
    store = place.open()
    assert store.count() == 0
    store.close()
