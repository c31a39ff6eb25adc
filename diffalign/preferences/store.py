"""The store of votes: events in a database, pictures beside it. A vote is acknowledged once it is on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

from sqlalchemy import func, null, select
from sqlalchemy.orm import Session

from diffalign.errors import DiffalignError
from diffalign.preferences.database import Database
from diffalign.preferences.events import (
    as_vote,
    new_answer,
    new_showing,
    new_token,
    repeated_undo,
    repeated_vote,
    shown_to,
    stamp,
    standing_answer,
    standing_votes,
)
from diffalign.preferences.garbage import collect
from diffalign.preferences.pictures import Pictures
from diffalign.preferences.schema import migrate
from diffalign.preferences.tables import Answer, Showing, Undo
from diffalign.preferences.vote import Choice, Kind, Vote, check_choice, check_seconds


@dataclass(frozen=True)
class Ballot:
    """A vote that was cast elsewhere; `token` makes it the same vote however often it is brought in."""

    user: str
    pictures: Sequence[str]
    choice: Choice
    token: str
    time: datetime
    kind: Kind = "pair"
    seconds: float | None = None


class Store:
    """Who was shown what and preferred what. Threads may share one; processes open the same place."""

    def __init__(self, database: Database, pictures: Pictures) -> None:
        self.database, self.pictures = database, pictures

    @classmethod
    def open(
        cls, where: str | Path, *, pictures: str | Path | None = None, busy_seconds: float = 30.0
    ) -> Store:
        """A file (its pictures in `<name>.pictures/` beside it), or a URL of PostgreSQL with `pictures`.

        Makes what is missing and migrates what is older; a newer schema is refused. busy_seconds: how
        long a write waits for others.
        """
        database = Database(where, busy_seconds)
        if pictures is None and database.file is None:
            raise DiffalignError(f"say in which folder the pictures of {database.name} are: pictures=FOLDER.")
        migrate(database)
        beside = database.file.with_suffix(".pictures") if database.file else Path()
        return cls(database, Pictures(Path(pictures or beside)))

    def close(self) -> None:
        """Give back all connections."""
        self.database.close()

    # -- events -------------------------------------------------------------------------------

    def show(self, user: str, pictures: Sequence[str], kind: Kind = "pair") -> int:
        """Record that the user is shown these pictures of one prompt, in this order; the showing's id."""
        showing = new_showing(self.pictures, user, pictures, kind)
        with self.database.writing(user) as session:
            session.add(showing)
            session.flush()
            return showing.id

    def vote(
        self,
        showing: int,
        user: str,
        choice: Choice | Sequence[str],
        *,
        seconds: float | None = None,
        token: str | None = None,
    ) -> Vote:
        """Record a choice between what was shown to this user; once, however often a token is sent.

        A showing is answered once; after `undo` it can be answered again.
        """
        with self.database.writing(user) as session:
            shown = shown_to(session, showing, user)
            chosen = check_choice(choice, cast(Kind, shown.kind), shown.pictures)
            answer = repeated_vote(session, token, showing, chosen)
            if answer is None:
                self.pictures.touch(shown.pictures)
                answer = new_answer(session, shown, chosen, seconds, token)
            return as_vote(answer)

    def skip(self, showing: int, user: str) -> None:
        """Record that the user did not want to choose; once, however often it is sent."""
        with self.database.writing(user) as session:
            shown = shown_to(session, showing, user)
            last = standing_answer(session, shown)
            if last is None or last.choice is not None:
                new_answer(session, shown, None, None, None)

    def undo(self, user: str, kind: Kind | None = None, *, token: str | None = None) -> Vote | None:
        """Take back the user's latest vote that stands, and return it; None where there is none.

        kind: the latest of these alone. A request that is repeated with its token takes back no second vote.
        """
        with self.database.writing(user) as session:
            answer = repeated_undo(session, token, user)
            if answer is None:
                answer = session.scalar(standing_votes(user, kind).order_by(Answer.id.desc()).limit(1))
                if answer is not None:
                    session.add(Undo(answer=answer, token=new_token(token), **stamp()))
            return None if answer is None else as_vote(answer)

    def record(self, ballots: Iterable[Ballot]) -> int:
        """Bring in votes that were cast elsewhere, all or none; how many of them were new."""
        with self.database.writing() as session:
            return sum([self._record(session, ballot) for ballot in ballots])

    def _record(self, session: Session, ballot: Ballot) -> bool:
        if session.scalar(select(Answer.id).where(Answer.token == ballot.token)) is not None:
            return False
        when = ballot.time.timestamp()
        showing = new_showing(self.pictures, ballot.user, ballot.pictures, ballot.kind, when)
        choice = check_choice(ballot.choice, ballot.kind, ballot.pictures)
        given = {"attempt": 0, "choice": choice, "seconds": check_seconds(ballot.seconds)}
        session.add(Answer(showing=showing, token=ballot.token, **given, **stamp(when)))
        return True

    # -- reading ------------------------------------------------------------------------------

    def votes(
        self, users: str | Iterable[str] | None = None, models: Iterable[str] | None = None
    ) -> list[Vote]:
        """All votes that were not undone, in the order they were cast.

        users: of these alone. models: only where all pictures are by these.
        """
        allowed = None if models is None else set(models)
        with self.database.reading() as session:
            found = session.scalars(standing_votes(users).order_by(Answer.id))
            votes = [as_vote(answer) for answer in found]
        return [vote for vote in votes if allowed is None or set(vote.models) <= allowed]

    def count(self, users: str | Iterable[str] | None = None) -> int:
        """How many votes stand."""
        with self.database.reading() as session:
            return session.scalar(select(func.count()).select_from(standing_votes(users).subquery())) or 0

    # -- garbage ------------------------------------------------------------------------------

    def collect_garbage(self, older_than: timedelta = timedelta(days=1)) -> list[Path]:
        """Remove pictures that nobody voted on and nobody was shown for so long; what was removed.

        Whatever a vote points to stays, also where it was undone. Safe while others show and vote.
        """
        return collect(self.pictures.folder, self._voted_on, older_than)

    def _voted_on(self) -> set[str]:
        query = select(Showing.pictures).join(Answer).where(Answer.choice.is_not(null()))
        with self.database.reading() as session:
            return {picture for pictures in session.scalars(query) for picture in pictures}
