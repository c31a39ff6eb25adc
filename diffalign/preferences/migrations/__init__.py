"""Alembic's scripts: how the tables of votes came to be what they are."""
