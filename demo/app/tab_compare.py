"""Compare: which of two pictures is better? The page talks to the API by itself, so that keys answer at once."""

from __future__ import annotations

from html import escape
from importlib.resources import files

import gradio as gr

from diffalign_demo.app.choosing import WORTH_JUDGING, WORTH_TRAINING
from diffalign_demo.app.limits import PROMPT_LENGTH
from diffalign_demo.app.session import Session

HERE = files("diffalign_demo.app")


def lay_out(session: Session) -> None:
    """The tab; compare.js does the rest."""
    words = {"{{length}}": PROMPT_LENGTH, "{{worth}}": WORTH_TRAINING, "{{judging}}": WORTH_JUDGING}
    body = HERE.joinpath("compare.html").read_text("utf-8")
    for word, value in words.items():
        body = body.replace(word, escape(str(value)))
    with gr.Tab("Compare", id="compare"):
        gr.HTML(html_template=body, js_on_load=HERE.joinpath("compare.js").read_text("utf-8"))
