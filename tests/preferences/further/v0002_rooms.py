"""A step that no release has: it rebuilds a table that others point to, and changes rows that are there."""

from __future__ import annotations

import os
import signal

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Give every showing a room; KILLED_HALFWAY: end as a power cut would, with all of it done but not kept."""
    with op.batch_alter_table("showings") as showings:
        showings.add_column(sa.Column("room", sa.String(), nullable=False, server_default="hall"))
        showings.create_check_constraint("of_a_kind", "kind IN ('pair', 'ranking')")
    op.execute("UPDATE showings SET room = 'attic' WHERE kind = 'ranking'")
    if os.environ.get("KILLED_HALFWAY"):
        os.kill(os.getpid(), signal.SIGKILL)
