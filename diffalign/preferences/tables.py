"""The tables of events: rows are added, never changed and never removed.

A vote has no user of its own: it belongs to the showing that it answers, and so to nobody else's.
"""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Double, ForeignKey, Integer, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

Key = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    """The tables of the newest schema."""


class Showing(Base):
    """Pictures of one prompt were shown to a user, in this order; times are seconds since 1970, UTC."""

    __tablename__ = "showings"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    user: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    prompt: Mapped[str]
    pictures: Mapped[list[str]] = mapped_column(JSON)
    models: Mapped[list[str]] = mapped_column(JSON)
    time: Mapped[float] = mapped_column(Double)
    version: Mapped[str]


class Answer(Base):
    """A user voted, or skipped (choice is null). attempt: how many answers to this showing were undone before."""

    __tablename__ = "answers"
    __table_args__ = (UniqueConstraint("showing_id", "attempt"),)

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    showing_id: Mapped[int] = mapped_column(ForeignKey("showings.id"))
    attempt: Mapped[int]
    choice: Mapped[str | list[str] | None] = mapped_column(JSON(none_as_null=True))
    seconds: Mapped[float | None] = mapped_column(Double)
    token: Mapped[str] = mapped_column(unique=True)
    time: Mapped[float] = mapped_column(Double)
    version: Mapped[str]
    showing: Mapped[Showing] = relationship()
    undo: Mapped[Undo | None] = relationship(back_populates="answer")


class Undo(Base):
    """A user took a vote back."""

    __tablename__ = "undos"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    answer_id: Mapped[int] = mapped_column(ForeignKey("answers.id"), unique=True)
    token: Mapped[str] = mapped_column(unique=True)
    time: Mapped[float] = mapped_column(Double)
    version: Mapped[str]
    answer: Mapped[Answer] = relationship(back_populates="undo")
