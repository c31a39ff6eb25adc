"""Align: train the model from the votes, and see it change."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from diffalign_demo.app import markup
from diffalign_demo.app.events import QUIET, in_words, user_of
from diffalign_demo.app.session import Session

OFF = "Training was switched off when this app was started (--no-training)."
EVERYBODY, ME = "All votes", "My votes alone"
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
        with gr.Row():
            whose = gr.Radio([EVERYBODY, ME], value=EVERYBODY, label="Learn from", interactive=allowed)
            wait = gr.Checkbox(
                label="Go on with people", interactive=allowed,
                info="after every round, wait for votes on what the model has become",
            )  # fmt: skip
        progress = gr.HTML(elem_id="progress")
        w = gr.Slider(
            -1, 3, 1, step=0.25, label="Strength of what was learnt",
            info="0 is the model as it was, 1 as it was trained, 3 more of it, −1 the opposite",
        )  # fmt: skip
        pictures = gr.HTML(elem_id="heldout", min_height=220)
        with gr.Row():
            lora = gr.Button("Download the LoRA (diffusers)", link="/api/lora", interactive=False)
            comfy = gr.Button(
                "Download the LoRA (ComfyUI)", link="/api/lora?layout=comfyui", interactive=False
            )
        timer = gr.Timer(EVERY, active=False)
    outputs = [progress, pictures, lora, comfy]
    for event in (tab.select, timer.tick, w.release):
        event(_look(session), w, outputs, **QUIET, concurrency_limit=2, concurrency_id="look")
    tab.select(lambda: gr.Timer(active=True), None, timer, **QUIET)
    train.click(_train(session), [whose, wait], progress, **QUIET)
    stop.click(_stop(session), None, progress, **QUIET)


def _look(session: Session) -> Any:
    @in_words
    def look(w: float) -> tuple[str, str, Any, Any]:
        alignment, w = (
            session.alignment,
            min(3.0, max(-1.0, round(4 * w) / 4)),
        )  # so few are worth remembering
        before = alignment.pictures(0.0)
        after = alignment.pictures(w) if session.studio.main.trained else None
        shown = markup.before_after(alignment.heldout, before, after, w)
        there = alignment.lora() is not None
        return _progress(session), shown, gr.Button(interactive=there), gr.Button(interactive=there)

    return look


def _train(session: Session) -> Any:
    @in_words
    def train(request: gr.Request, whose: str, wait: bool) -> str:
        mine = [f"voters={json.dumps({user_of(request): 1.0})}"] if whose == ME else []
        if session.options.training:
            session.alignment.training.start([*mine, *(["wait=true"] if wait else [])])
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
    alignment = session.alignment
    return markup.progress(alignment.training.progress(), alignment.waits, alignment.problem)
