"""Align: train the model from the votes, and see it change."""

from __future__ import annotations

from typing import Any

import gradio as gr

from diffalign_demo.app import markup
from diffalign_demo.app.events import QUIET, in_words
from diffalign_demo.app.session import Session

OFF = "Training was switched off when this app was started (--no-training)."
EVERY = 3.0
"""Seconds between two looks at the run."""


def lay_out(session: Session) -> None:
    """The tab and its events; it looks at the run once it has been opened."""
    allowed = session.options.training
    with gr.Tab("Align", id="align") as tab:
        if not allowed:
            gr.HTML(markup.note(OFF))
        with gr.Row():
            train = gr.Button("Train from the votes", variant="primary", interactive=allowed)
            stop = gr.Button("Stop", interactive=allowed)
            lora = gr.Button("Download the LoRA", link="/api/lora", interactive=False)
        progress = gr.HTML(elem_id="progress")
        w = gr.Slider(
            -1, 3, 1, step=0.25, label="Strength of what was learnt",
            info="0 is the model as it was, 1 as it was trained, 3 more of it, −1 the opposite",
        )  # fmt: skip
        pictures = gr.HTML(elem_id="heldout", min_height=220)
        timer = gr.Timer(EVERY, active=False)
    outputs = [progress, pictures, lora]
    for event in (tab.select, timer.tick, w.release):
        event(_look(session), w, outputs, **QUIET, concurrency_limit=2, concurrency_id="look")
    tab.select(lambda: gr.Timer(active=True), None, timer, **QUIET)
    train.click(_train(session), None, progress, **QUIET)
    stop.click(_stop(session), None, progress, **QUIET)


def _look(session: Session) -> Any:
    @in_words
    def look(w: float) -> tuple[str, str, Any]:
        alignment = session.alignment
        before = alignment.pictures(0.0)
        after = alignment.pictures(w) if session.studio.main.trained else None
        shown = markup.before_after(alignment.heldout, before, after, w)
        return _progress(session), shown, gr.Button(interactive=alignment.lora() is not None)

    return look


def _train(session: Session) -> Any:
    @in_words
    def train() -> str:
        if session.options.training:
            session.alignment.training.start()
        return _progress(session)

    return train


def _stop(session: Session) -> Any:
    @in_words
    def stop() -> str:
        if session.options.training:
            session.alignment.training.stop()
        return _progress(session)

    return stop


def _progress(session: Session) -> str:
    return markup.progress(session.alignment.training.progress(), session.alignment.problem)
