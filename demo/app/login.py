"""The page where members give their names and passwords."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from diffalign_demo.app.gate import COOKIE, cookie_header
from diffalign_demo.app.limits import Rate
from diffalign_demo.app.members import Members

PAGE = files("diffalign_demo.app").joinpath("login.html").read_text("utf-8")


def router(members: Members) -> APIRouter:
    """GET and POST /login, POST /logout."""
    routes, tries = APIRouter(), Rate(per_second=0.1, burst=10)

    @routes.get("/login")
    def page() -> HTMLResponse:
        return HTMLResponse(_page())

    @routes.post("/login")
    def login(
        request: Request,
        name: Annotated[str, Form(max_length=64)] = "",
        password: Annotated[str, Form(max_length=256)] = "",
    ) -> Response:
        client = request.client.host if request.client else "?"
        if tries.wait(client) or tries.wait(f"name {name}"):
            return HTMLResponse(_page("Too many tries; wait a minute.", name), 429)
        cookie = members.login(name, password)
        if cookie is None:
            return HTMLResponse(_page("That name and password do not go together.", name), 401)
        return _moved("/", cookie_header(cookie, request.url.scheme == "https"))

    @routes.post("/logout")
    def logout() -> Response:
        return _moved("/login", f"{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax")

    return routes


def _page(problem: str = "", name: str = "") -> str:
    return PAGE.replace("{{problem}}", escape(problem)).replace("{{name}}", escape(name))


def _moved(where: str, cookie: str) -> Response:
    return RedirectResponse(where, 303, {"set-cookie": cookie})
