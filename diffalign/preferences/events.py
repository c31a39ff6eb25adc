"""Questions to the tables of events, and the events that are made of what users do."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import Select, func, null, select
from sqlalchemy.orm import Session, contains_eager

from diffalign import __version__
from diffalign.errors import DiffalignError
from diffalign.preferences.pictures import Pictures
from diffalign.preferences.tables import Answer, Showing, Undo
from diffalign.preferences.vote import Choice, Kind, Vote, check_seconds, check_shown, check_text


def stamp(when: float | None = None) -> dict[str, Any]:
    """What every event has: its time, in seconds since 1970, and diffalign's version."""
    return {"time": time.time() if when is None else when, "version": __version__}


def new_token(given: str | None = None) -> str:
    """The client's token, or one that nobody has."""
    return uuid.uuid4().hex if given is None else check_text(given, "a token")


def new_showing(
    kept: Pictures, user: str, pictures: Sequence[str], kind: Kind, when: float | None = None
) -> Showing:
    """The showing of these pictures, whose time of grace begins anew."""
    check_text(user, "a user's name")
    check_shown(pictures, kind)
    kept.touch(pictures)
    infos = [kept.info(picture) for picture in pictures]
    prompts = {info.prompt for info in infos}
    if len(prompts) > 1:
        raise DiffalignError(f"pictures of one prompt are compared, not of {sorted(prompts)}.")
    models, prompt = [info.model for info in infos], prompts.pop()
    return Showing(user=user, kind=kind, prompt=prompt, pictures=list(pictures), models=models, **stamp(when))


def new_answer(
    session: Session, shown: Showing, choice: Choice | None, seconds: float | None, token: str | None
) -> Answer:
    """The answer to a showing that has none, or whose answers were all undone."""
    if standing_answer(session, shown) is not None:
        raise DiffalignError(f"the showing {shown.id} was answered already; undo that first, or show anew.")
    attempt = session.scalar(select(func.count()).where(Answer.showing_id == shown.id))
    given = {"attempt": attempt, "choice": choice, "seconds": check_seconds(seconds)}
    answer = Answer(showing=shown, token=new_token(token), **given, **stamp())
    session.add(answer)
    session.flush()
    return answer


def shown_to(session: Session, showing: int, user: str) -> Showing:
    """What was shown to this user under this id; an error where it was shown to another, or to nobody."""
    found = session.get(Showing, showing)
    if found is None or found.user != user:
        raise DiffalignError(
            f"nothing with the id {showing} was shown to {user!r}; vote on what `show` returned for this user."
        )
    return found


def standing_answer(session: Session, shown: Showing) -> Answer | None:
    """The answer to a showing that was not undone."""
    query = select(Answer).outerjoin(Answer.undo).where(Answer.showing_id == shown.id, Undo.id.is_(None))
    return session.scalar(query)


def standing_votes(users: str | Iterable[str] | None, kind: Kind | None = None) -> Select[Answer]:
    """The votes that were not undone, of this user, of these, or of all; kind: of this kind alone."""
    query = (
        select(Answer)
        .join(Answer.showing)
        .outerjoin(Answer.undo)
        .where(Answer.choice.is_not(null()), Undo.id.is_(None))
        .options(contains_eager(Answer.showing))
    )
    query = query if kind is None else query.where(Showing.kind == kind)
    named = [users] if isinstance(users, str) else users
    return query if named is None else query.where(Showing.user.in_(list(named)))


def repeated_vote(session: Session, token: str | None, showing: int, choice: Choice) -> Answer | None:
    """The vote that this token was sent with before."""
    answer = None if token is None else session.scalar(select(Answer).where(Answer.token == token))
    if answer is not None and (answer.showing_id, answer.choice) != (showing, choice):
        raise DiffalignError("this token belongs to another vote; make a new one for every vote.")
    return answer


def repeated_undo(session: Session, token: str | None, user: str) -> Answer | None:
    """The vote that was undone when this token was sent before."""
    undo = None if token is None else session.scalar(select(Undo).where(Undo.token == token))
    if undo is not None and undo.answer.showing.user != user:
        raise DiffalignError("this token belongs to another user's undo; make a new one for every request.")
    return None if undo is None else undo.answer


def as_vote(answer: Answer) -> Vote:
    """A vote as the rest of the program sees it."""
    shown = answer.showing
    return Vote(
        id=answer.id,
        showing=shown.id,
        user=shown.user,
        prompt=shown.prompt,
        kind=cast(Kind, shown.kind),
        pictures=tuple(shown.pictures),
        models=tuple(shown.models),
        choice=cast(Choice, answer.choice),
        seconds=answer.seconds,
        time=datetime.fromtimestamp(answer.time, UTC),
        version=answer.version,
    )
