"""The app as a server: the gate in front, then the API, then Gradio."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request

from diffalign import __version__
from diffalign_demo.app import api, login
from diffalign_demo.app.gate import USER, Gate
from diffalign_demo.app.limits import BODY_BYTES, Rate
from diffalign_demo.app.members import Members
from diffalign_demo.app.options import LOOPBACK, Options
from diffalign_demo.app.page import page
from diffalign_demo.app.session import Session, begin
from diffalign_demo.app.theme import CSS, theme

HERE = Path(__file__).parent
REQUESTS = Rate(per_second=20, burst=60)


def serve(options: Options, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C."""
    options.check()
    members = Members(options.auth) if options.auth else None
    app = application(begin(options, say), members)
    say(f"votes go into {options.votes}; open http://{options.host}:{options.port}")
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning", timeout_graceful_shutdown=3)


def application(session: Session, members: Members | None, rate: Rate = REQUESTS) -> Gate:
    """The ASGI application of a session; it closes the session when it ends, and leaves no files of its own."""
    own = TemporaryDirectory(prefix="diffalign-", ignore_cleanup_errors=True)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with own:
            yield
            session.close()

    app = FastAPI(
        title="diffalign", version=__version__, lifespan=lifespan,
        docs_url=None, redoc_url=None, openapi_url="/api/openapi.json",
    )  # fmt: skip
    api.explain(app)
    app.include_router(api.router(session))
    if members:
        app.include_router(login.router(members))
    hosts = (*LOOPBACK, session.options.host)
    os.environ["GRADIO_TEMP_DIR"] = own.name
    return Gate(_with_gradio(app, session, members is not None), members, rate, hosts)


def _with_gradio(app: FastAPI, session: Session, named: bool) -> FastAPI:
    """Gradio serves its own files and those that it made itself, in a folder of its own, and no others."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    mounted: FastAPI = gr.mount_gradio_app(
        app, page(session, named), path="/", server_name=session.options.host, server_port=session.options.port,
        auth_dependency=_user, allowed_paths=[], blocked_paths=[str(Path.cwd()), str(Path.home())],
        max_file_size=BODY_BYTES, ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False,
        footer_links=[], run_history=False, show_error=True, theme=theme(), css_paths=[CSS],
    )  # fmt: skip
    return mounted


def _user(request: Request) -> str | None:
    found: str | None = request.scope.get(USER)
    return found
