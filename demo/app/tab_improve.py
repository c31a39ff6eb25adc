"""Improve: a search for the best picture of a prompt, live."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pandas as pd

from diffalign_demo.app import markup
from diffalign_demo.app.events import QUIET, in_words, user_of
from diffalign_demo.app.improving import METHODS, REWARDS, Frame, Improvement
from diffalign_demo.app.limits import PROMPT_LENGTH, check_prompt
from diffalign_demo.app.session import Session

EMPTY = "Press Start: the best picture so far is shown here."
COLOURS = {"best so far": "#7c3aed", "this sample": "#f59e0b"}
FIRST_WEIGHTS = (1.0, 0.5, 0.0)


def lay_out(session: Session) -> None:
    """The tab and its events."""
    models = session.searchers()
    with gr.Tab("Improve", id="improve"), gr.Row():
        with gr.Column(scale=2, min_width=300):
            prompt = gr.Textbox(label="Prompt", value="red apple", max_length=PROMPT_LENGTH)
            sliders = [
                gr.Slider(-2, 2, weight, step=0.1, label=label)
                for label, weight in zip(REWARDS, FIRST_WEIGHTS, strict=True)
            ]
            gr.HTML('<p class="da-muted">The sliders say how much each reward counts.</p>')
            method = gr.Dropdown(list(METHODS), value=next(iter(METHODS)), label="Search")
            model = gr.Dropdown(models, value=models[0], label="Model")
            count = gr.Slider(10, 100, 50, step=5, label="Samples")
            with gr.Row():
                start = gr.Button("Start", variant="primary")
                stop = gr.Button("Stop")
        with gr.Column(scale=3, min_width=300):
            picture = gr.HTML(markup.frame(None, "The best picture so far", EMPTY), elem_id="best-picture")
            curve = gr.LinePlot(
                _curve([]), x="sample", y="reward", color="line", color_map=COLOURS, colors_in_legend=[], height=300,
                label="Reward", x_title="Sample", y_title="Reward", buttons=[],
                caption="The upper line is the best so far, the lower one each sample.",
            )  # fmt: skip
    asked = [prompt, method, model, count, *sliders]
    start.click(
        _start(session), asked, [picture, curve], **QUIET, concurrency_limit=4, concurrency_id="search"
    )
    stop.click(_stop(session), None, None, **QUIET)


def _start(session: Session) -> Any:
    @in_words
    def start(
        request: gr.Request, prompt: str, method: str, model: str, count: int, *weights: float
    ) -> Iterator[tuple[str, pd.DataFrame]]:
        user, chosen = user_of(request), dict(zip(REWARDS, weights, strict=True))
        with session.seats.seat(user):
            artist = session.searcher(model)
            search = METHODS[method](int(count), math.prod(artist.policy.latent_shape))
            found = Improvement(artist, check_prompt(prompt), search, chosen)
            session.searching[user] = found
            try:
                yield from _shown(found)
            finally:
                found.stop()
                del session.searching[user]

    return start


def _shown(found: Improvement) -> Iterator[tuple[str, pd.DataFrame]]:
    """Every frame as it comes, and the last one again with how it ended."""
    frames: list[Frame] = []
    for frame in found:
        frames.append(frame)
        yield _told(found, frame), _curve(frames)
    if frames:
        yield _told(found, frames[-1], f", {found.ended}"), _curve(frames)


def _told(found: Improvement, frame: Frame, end: str = "") -> str:
    caption = f"{found.prompt}: best reward {frame.best:.3f} of {frame.number} sample(s){end}"
    return markup.frame(frame.picture, caption)


def _stop(session: Session) -> Any:
    @in_words
    def stop(request: gr.Request) -> None:
        if search := session.searching.get(user_of(request)):
            search.stop()

    return stop


def _curve(frames: list[Frame]) -> pd.DataFrame:
    """The reward of every sample, and the best so far."""
    rows = [(f.number, f.scores["total"], "this sample") for f in frames] + [
        (f.number, f.best, "best so far") for f in frames
    ]
    return pd.DataFrame(rows, columns=["sample", "reward", "line"])
