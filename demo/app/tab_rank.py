"""Rank: put pictures in order, round by round, until one of them is what you want."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import gradio as gr

from diffalign_demo.app import markup
from diffalign_demo.app.events import QUIET, in_words, user_of
from diffalign_demo.app.limits import PROMPT_LENGTH, check_prompt
from diffalign_demo.app.session import Session

JS = files("diffalign_demo.app").joinpath("rank.js").read_text("utf-8")


def lay_out(session: Session) -> None:
    """The tab and its events."""
    with gr.Tab("Rank", id="rank") as tab:
        with gr.Row(equal_height=True):
            prompt = gr.Textbox(
                label="Prompt", value="red apple", max_length=PROMPT_LENGTH, scale=2, min_width=240
            )
            shown = gr.Slider(4, 8, 6, step=1, label="Pictures in a round", min_width=220)
            top = gr.Slider(1, 4, 3, step=1, label="How many to put in order", min_width=220)
        with gr.Row():
            start = gr.Button("Start", variant="primary")
            like = gr.Button("I like this one: stop")
        board = gr.HTML(markup.ranking(None), js_on_load=JS, elem_id="ranking")
        result = gr.HTML("", elem_id="ranked")
    both: dict[str, Any] = {"outputs": [board, result], **QUIET}
    start.click(_start(session), [prompt, shown, top], **both)
    board.submit(_tell(session), None, **both)
    like.click(_like(session), None, **both)
    tab.select(_again(session), None, board, **QUIET)


def _start(session: Session) -> Any:
    @in_words
    def start(prompt: str, shown: int, top: int, request: gr.Request) -> tuple[str, str]:
        user = user_of(request)
        with session.drawing.seat(user):
            ascent = session.ranking.start(user, check_prompt(prompt), int(shown), int(top))
        return markup.ranking(ascent), ""

    return start


def _tell(session: Session) -> Any:
    @in_words
    def tell(event: gr.EventData, request: gr.Request) -> tuple[str, str]:
        data = event._data or {}
        order = [str(picture) for picture in data.get("order", [])]
        user = user_of(request)
        with session.drawing.seat(user):
            ascent = session.ranking.tell(user, int(data.get("showing", 0)), order)
        return markup.ranking(ascent), ""

    return tell


def _like(session: Session) -> Any:
    @in_words
    def like(request: gr.Request) -> tuple[str, str]:
        user = user_of(request)
        ascent = session.ranking.of(user)
        if ascent is None:
            return markup.ranking(None), ""
        picture = session.ranking.here(user)
        session.ranking.end(user)
        return markup.ranking(None), markup.frame(
            picture, f"{ascent.prompt}, after {ascent.round - 1} round(s)"
        )

    return like


def _again(session: Session) -> Any:
    @in_words
    def again(request: gr.Request) -> str:
        return markup.ranking(session.ranking.of(user_of(request)))

    return again
