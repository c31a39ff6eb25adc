"""What the tabs have in common: whose event it is, and errors in words."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from html import escape
from typing import Any, TypeVar

import gradio as gr

from diffalign.errors import DiffalignError
from diffalign_demo.app.gate import USER

F = TypeVar("F", bound=Callable[..., Any])
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""How events are wired that show by themselves what they do."""


def user_of(request: gr.Request) -> str:
    """The user whom the gate found."""
    return str(request.request.scope[USER])


def in_words(event: F) -> F:
    """Show our own errors as a message on the page."""

    @functools.wraps(event)
    def plain(*given: Any, **named: Any) -> Any:
        try:
            return event(*given, **named)
        except DiffalignError as error:
            raise gr.Error(escape(str(error)), title="This did not work", print_exception=False) from error

    @functools.wraps(event)
    def generator(*given: Any, **named: Any) -> Any:
        try:
            yield from event(*given, **named)
        except DiffalignError as error:
            raise gr.Error(escape(str(error)), title="This did not work", print_exception=False) from error

    return generator if inspect.isgeneratorfunction(event) else plain  # type: ignore[return-value]
