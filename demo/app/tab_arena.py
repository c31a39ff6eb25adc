"""Arena: the models against each other, by all votes so far."""

from __future__ import annotations

from typing import Any

import gradio as gr

from diffalign.preferences import agreement, bradley_terry, suspicious
from diffalign_demo.app import markup
from diffalign_demo.app.events import QUIET, in_words, user_of
from diffalign_demo.app.session import Session

EVERYBODY, ME = "All users", "My votes alone"


def lay_out(session: Session) -> None:
    """The tab and its events."""
    with gr.Tab("Arena", id="arena") as tab:
        with gr.Row():
            whose = gr.Radio([EVERYBODY, ME], value=EVERYBODY, label="Whose votes")
            again = gr.Button("Count again", scale=0, min_width=160, size="md")
        table = gr.HTML(elem_id="arena-table")
    for event in (tab.select, again.click, whose.change):
        event(_table(session), whose, table, **QUIET)


def _table(session: Session) -> Any:
    @in_words
    def table(whose: str, request: gr.Request) -> str:
        votes = session.store.votes(user_of(request) if whose == ME else None)
        return markup.arena(bradley_terry(votes), agreement(votes), suspicious(votes))

    return table
