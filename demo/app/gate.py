"""What every request passes first: whose it is, whether it is too large or one too many, and what is closed."""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
from collections import Counter
from http.cookies import CookieError, SimpleCookie

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffalign_demo.app.limits import BODY_BYTES, Rate
from diffalign_demo.app.members import LASTS, Members
from diffalign_demo.app.options import LOOPBACK

COOKIE = "diffalign"
USER = "diffalign.user"
"""Where the user's name stands in a request's scope."""
CLOSED = re.compile(r"/+(gradio_api/+)?(upload|proxy=|stream|process_recording|vibe-|call|run|api_info)")
"""Doors of Gradio that the app has no use for."""
AT_ONCE = 4
"""Requests to the API that are answered at once for one user: who waits for a pair holds a thread."""
OPEN = ("/login", "/favicon.ico")
"""What is answered to those who have not logged in."""
SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"same-origin"),
]


class Gate:
    """With members, users are those who have logged in; without, names that random cookies stand for."""

    def __init__(
        self, app: ASGIApp, members: Members | None, rate: Rate, hosts: tuple[str, ...] = LOOPBACK
    ) -> None:
        self.app, self.members, self.rate = app, members, rate
        self.hosts = None if members else hosts
        self._busy = Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        request = Request(scope)
        cookie = request.cookie or (None if self.members else secrets.token_urlsafe(24))
        user = scope[USER] = self._user(cookie)
        if refusal := self._refusal(request, user):
            return await answer(send, *refusal)
        new = cookie if not self.members and not request.cookie else None
        sending = marked(send, new, scope["scheme"] == "https")
        if not request.waits:
            return await self.app(scope, limited(receive), sending)
        who = user or request.client
        self._busy[who] += 1
        try:
            await self.app(scope, limited(receive), sending)
        finally:
            self._busy[who] -= 1
            if not self._busy[who]:
                del self._busy[who]

    def _user(self, cookie: str | None) -> str | None:
        if cookie is None:
            return None
        return self.members.user(cookie) if self.members else guest(cookie)

    def _refusal(self, request: Request, user: str | None) -> tuple[int, str, dict[str, str]] | None:
        """(status, words, headers) for what is not let in."""
        if self.hosts and request.host not in self.hosts:
            return 421, f"this app answers to {', '.join(self.hosts)} alone, not to {request.host}.", {}
        if CLOSED.match(request.path):
            return 403, "this app takes no uploads and hands nothing on.", {}
        if request.size > BODY_BYTES:
            return 413, f"a request has at most {BODY_BYTES} bytes, not {request.size}.", {}
        if user is None and request.path not in OPEN:
            return (
                (303, "log in first.", {"location": "/login"}) if request.page else (401, "log in first.", {})
            )
        who = user or request.client
        wait = self.rate.wait(who) if request.counts else 0.0
        if wait or (request.waits and self._busy[who] >= AT_ONCE):
            return 429, "that was too fast; trying again …", {"retry-after": str(math.ceil(wait) or 1)}
        return None


class Request:
    """The parts of a scope that the gate looks at."""

    def __init__(self, scope: Scope) -> None:
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        self.path, self.method = scope["path"], scope["method"]
        self.client = (scope.get("client") or ("?",))[0]
        self.host = re.sub(r":\d+$", "", headers.get("host", ""))
        length = headers.get("content-length", "0")
        self.size = int(length) if length.isdecimal() else BODY_BYTES + 1
        self.cookie = _cookie(headers.get("cookie", ""))
        self.page = self.method == "GET" and "text/html" in headers.get("accept", "")
        api = self.path.startswith("/api/")
        self.waits = api and not self.path.startswith("/api/picture/")
        self.counts = api or self.method not in ("GET", "HEAD")


def guest(cookie: str) -> str:
    """The name of whoever holds a cookie; it does not tell the cookie."""
    return f"guest-{hashlib.sha256(cookie.encode()).hexdigest()[:12]}"


def limited(receive: Receive) -> Receive:
    """The same request, cut off where it is longer than it said it was."""
    left = BODY_BYTES

    async def inner() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        return message if left >= 0 else {"type": "http.disconnect"}

    return inner


def marked(send: Send, cookie: str | None, secure: bool) -> Send:
    """The same answer, with headers that keep browsers careful, and a guest's new cookie."""

    async def inner(message: Message) -> None:
        if message["type"] == "http.response.start":
            set_cookie = [(b"set-cookie", cookie_header(cookie, secure).encode())] if cookie else []
            message["headers"] = [*message.get("headers", []), *SECURITY, *set_cookie]
        await send(message)

    return inner


def cookie_header(value: str, secure: bool) -> str:
    """A cookie that scripts cannot read and that other sites cannot send."""
    kept = f"{COOKIE}={value}; Path=/; Max-Age={LASTS}; HttpOnly; SameSite=Lax"
    return f"{kept}; Secure" if secure else kept


async def answer(send: Send, status: int, words: str, headers: dict[str, str]) -> None:
    """A refusal, as JSON."""
    body = json.dumps({"detail": words}).encode()
    own = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    pairs = [(key.encode(), value.encode()) for key, value in own.items()]
    await send({"type": "http.response.start", "status": status, "headers": [*pairs, *SECURITY]})
    await send({"type": "http.response.body", "body": body})


def _cookie(header: str) -> str | None:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return None
    return found.value if found and 16 <= len(found.value) <= 512 else None
