"""What Alembic runs: the migrations, in the transaction that `schema.migrate` opened."""

from __future__ import annotations

from alembic import context

from diffalign.preferences.schema import VERSION_TABLE
from diffalign.preferences.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
)
context.run_migrations()
