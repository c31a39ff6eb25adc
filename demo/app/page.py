"""The page: a heading and the tabs."""

from __future__ import annotations

from html import escape

import gradio as gr

from diffalign_demo.app import tab_align, tab_arena, tab_compare, tab_improve, tab_rank
from diffalign_demo.app.session import Session

HEAD = """<header class="da-head"><h1>diffalign</h1><p>Say which pictures you like. The model learns.</p>{}</header>"""
LEAVE = '<form method="post" action="/logout"><button class="da-button">Log out</button></form>'


def page(session: Session, named: bool) -> gr.Blocks:
    """All tabs; `named`: users have logged in, and may leave."""
    with gr.Blocks(title="diffalign", analytics_enabled=False) as made:
        gr.HTML(HEAD.format(LEAVE if named else ""))
        with gr.Tabs(overflow_behavior="wrap"):
            for tab in (tab_compare, tab_rank, tab_improve, tab_align, tab_arena):
                tab.lay_out(session)
        gr.HTML(
            f'<p class="da-foot">Model: {escape(session.studio.main.title)}. Votes are kept by this app.</p>'
        )
    made.queue(max_size=200, default_concurrency_limit=8)
    return made
