"""The votes over HTTP: what the page asks for, and what scripts that vote use.

Bad requests answer 4xx and faults of the database 503, both with {"detail": what to do}; a request may be
sent again with its token, and counts once.
"""

from __future__ import annotations

from io import BytesIO
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from PIL import Image
from pydantic import BaseModel, Field, FiniteFloat

from diffalign.errors import DiffalignError, RunError
from diffalign.preferences.pictures import ID
from diffalign_demo.app.booth import Offer, mode_of
from diffalign_demo.app.choosing import How, Kind, Mode, worth_having
from diffalign_demo.app.gate import USER
from diffalign_demo.app.limits import PROMPT_LENGTH, check_prompt
from diffalign_demo.app.session import Session

PATIENCE = 20.0
"""Seconds in which a pair is drawn, or the request is answered with 503."""

Showing = Annotated[int, Field(ge=1, lt=2**63)]
Token = Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[\w-]+$")]


class Counts(BaseModel):
    """Votes that stand, of all users, how many are worth having, and how many more a training run waits for."""

    votes: int
    worth: int
    waits: int


class PairOut(Counts):
    """Two pictures of a prompt; their addresses are /api/picture/ID."""

    showing: int
    prompt: str
    pictures: tuple[str, str]
    again: bool


class VoteIn(BaseModel):
    """What a user says of a showing; seconds: how long it took; token: new for every vote."""

    showing: Showing
    choice: Literal["a", "b", "tie", "both_bad"]
    token: Token
    seconds: Annotated[FiniteFloat, Field(ge=0)] | None = None


class SkipIn(BaseModel):
    """The showing that is not voted on."""

    showing: Showing


class UndoIn(BaseModel):
    """token: new for every undo."""

    token: Token


class Undone(Counts):
    """The showing whose vote was taken back; null where there was none."""

    showing: int | None


class PromptIn(BaseModel):
    """An own prompt."""

    prompt: Annotated[str, Field(max_length=4 * PROMPT_LENGTH)]
    mode: Mode = "train"
    choose: How = "informed"


def user_of(request: Request) -> str:
    """The user whom the gate found."""
    return str(request.scope[USER])


User = Annotated[str, Depends(user_of)]


def router(session: Session) -> APIRouter:
    """The routes below /api."""
    api = APIRouter(prefix="/api")
    booth, studio = session.booth, session.studio

    def counts(user: str, mode: Mode = "train") -> Counts:
        worth = worth_having(mode, len(studio.models()))
        return Counts(votes=booth.store.count(), worth=worth, waits=session.alignment.waits_for(user))

    @api.get("/pair")
    def pair(user: User, mode: Mode = "train", choose: How = "informed") -> PairOut:
        """The user's pair: the same until it is voted on or skipped."""
        if mode == "judge":
            studio.judged()
        offer = booth.next(user, Kind(mode, choose), PATIENCE)
        if offer is None:
            raise HTTPException(503, "the next pair is still being drawn; ask again.", {"Retry-After": "1"})
        return told(offer, counts(user, mode))

    @api.post("/vote")
    def vote(user: User, vote: VoteIn) -> Counts:
        """Record a vote; it is on disk when this answers."""
        cast = booth.vote(user, vote.showing, vote.choice, vote.seconds, vote.token)
        return counts(user, mode_of(cast))

    @api.post("/skip")
    def skip(user: User, skip: SkipIn) -> Counts:
        """Record that the user does not choose between these."""
        booth.skip(user, skip.showing)
        return counts(user)

    @api.post("/undo")
    def undo(user: User, undo: UndoIn) -> Undone:
        """Take back the user's last vote; its pair is shown again."""
        vote = booth.undo(user, undo.token)
        return Undone(showing=vote.showing if vote else None, **counts(user).model_dump())

    @api.post("/prompt", status_code=202)
    def prompt(user: User, asked: PromptIn) -> None:
        """Draw a pair of the user's own prompt; it comes next."""
        text = check_prompt(asked.prompt)
        studio.main.policy.check_prompts([text])
        booth.pool.ask(user, Kind(asked.mode, asked.choose), text)

    @api.get("/picture/{picture}", response_class=Response)
    def picture(picture: str) -> Response:
        """The pixels alone: a kept file names its model, which voters are not to know."""
        if not ID.fullmatch(picture):
            raise HTTPException(404, "there is no such picture.")
        cached = {"Cache-Control": "private, max-age=31536000, immutable"}
        return Response(blind(booth.store.pictures.read(picture)), media_type="image/png", headers=cached)

    @api.get("/lora", response_class=FileResponse)
    def lora(layout: Literal["diffusers", "comfyui"] = "diffusers") -> FileResponse:
        """The LoRA that is drawn with, with the keys of diffusers or of ComfyUI."""
        if (path := session.alignment.lora(layout)) is None:
            raise HTTPException(404, "there is no LoRA yet: train one in the tab Align.")
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    @api.get("/counts")
    def count(user: User, mode: Annotated[Mode, Query()] = "train") -> Counts:
        """How many votes are in."""
        return counts(user, mode)

    return api


def told(offer: Offer, counts: Counts) -> PairOut:
    """An offer as it goes out."""
    own = {"showing": offer.showing, "prompt": offer.prompt, "pictures": offer.pictures, "again": offer.again}
    return PairOut(**own, **counts.model_dump())


def blind(png: bytes) -> bytes:
    """A PNG without the notes in it."""
    bare = BytesIO()
    with Image.open(BytesIO(png)) as image:
        image.convert("RGB").save(bare, "PNG")
    return bare.getvalue()


def explain(app: FastAPI) -> None:
    """Answer our own errors in words."""

    @app.exception_handler(DiffalignError)
    def _(request: Request, error: DiffalignError) -> JSONResponse:
        missing = isinstance(error.__cause__, FileNotFoundError)
        status = 404 if missing else 503 if isinstance(error, RunError) else 409
        return JSONResponse({"detail": str(error)}, status)
