"""Showings, answers and undos."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
Key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the three tables of events."""
    op.create_table(
        "showings",
        sa.Column("id", Key, primary_key=True),
        sa.Column("user", sa.String(), nullable=False, index=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("prompt", sa.String(), nullable=False),
        sa.Column("pictures", sa.JSON(), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
    )
    op.create_table(
        "answers",
        sa.Column("id", Key, primary_key=True),
        sa.Column("showing_id", Key, sa.ForeignKey("showings.id"), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("choice", sa.JSON(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("token", sa.String(), nullable=False, unique=True),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.UniqueConstraint("showing_id", "attempt"),
    )
    op.create_table(
        "undos",
        sa.Column("id", Key, primary_key=True),
        sa.Column("answer_id", Key, sa.ForeignKey("answers.id"), nullable=False, unique=True),
        sa.Column("token", sa.String(), nullable=False, unique=True),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
    )
