"""Asking a server over HTTP until it gives a good answer: with backoff and jitter, and an end to it."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2

from diffalign.errors import DiffalignError, RunError
from diffalign.serving.wire import TOKEN, loopback

T = TypeVar("T")

FINAL = {400, 401, 403, 404, 405, 413, 415, 422}
"""Statuses that the same request would get again."""
LARGEST = 2**24
"""Bytes of the longest answer that is read; scores are far shorter."""


@dataclass(frozen=True)
class Patience:
    """How often a request is sent, and the seconds between: doubled each time up to `longest`, and jittered."""

    tries: int = 8
    first: float = 0.5
    longest: float = 30.0

    def delay(self, failures: int, wished: float = 0.0) -> float:
        """Seconds to wait after so many failures; not less than the server wished, within reason."""
        usual: float = min(self.longest, self.first * 2 ** (failures - 1))
        return max(usual * random.uniform(0.5, 1.0), min(wished, self.longest))


class Failed(Exception):
    """One try failed: why, how long the server wants to be left alone, and whether that is final."""

    def __init__(self, why: str, wished: float = 0.0, *, final: bool = False) -> None:
        super().__init__(why)
        self.wished, self.final = wished, final


@dataclass
class Exchange:
    """Requests to one server, each taking `timeout` seconds at most.

    `check` is called before a request is repeated, and may raise where it is known to be in vain.
    """

    url: str
    client: httpx2.Client
    timeout: float = 60.0
    patience: Patience = field(default_factory=Patience)
    check: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._closed = threading.Event()

    def close(self) -> None:
        """Let go of the connections, and end a wait between two tries in another thread."""
        self._closed.set()
        self.client.close()

    def get(self, path: str) -> bytes:
        """What is at a path; tried once."""
        return self._send(self.client.build_request("GET", path))

    def post(self, path: str, body: bytes, read: Callable[[bytes], T]) -> T:
        """What `read` makes of the answer to a JSON body; repeated while the server or `read` says Failed."""
        failures = 0
        while not self._closed.is_set():
            try:
                headers = {"Content-Type": "application/json"}
                return read(
                    self._send(self.client.build_request("POST", path, content=body, headers=headers))
                )
            except Failed as failed:
                failures += 1
                self.check()
                if failed.final or failures >= self.patience.tries:
                    raise self._gave_up(failed, failures) from failed
                self._closed.wait(self.patience.delay(failures, failed.wished))
        raise RunError(f"the reward at {self.url} was closed while it was asked.")

    def _send(self, request: httpx2.Request) -> bytes:
        """The body of a good answer."""
        end = time.monotonic() + self.timeout
        try:
            response = self.client.send(request, stream=True)
            try:
                body = _received(response, end)
            finally:
                response.close()
        except httpx2.TimeoutException as error:
            raise Failed(f"no answer within {self.timeout:g} s ({type(error).__name__}).") from error
        except (httpx2.HTTPError, httpx2.InvalidURL, RuntimeError) as error:  # RuntimeError: closed meanwhile
            raise Failed(f"{type(error).__name__}: {error}.") from error
        if response.status_code != 200:
            raise _refused(response, body)
        return body

    def _gave_up(self, failed: Failed, tries: int) -> RunError:
        return RunError(
            f"the reward at {self.url} failed: {failed} It was asked {tries} time(s). Nothing that was saved is "
            "lost: see to the server, then resume the run."
        )


def opened(
    url: str, token: str | None, timeout: float, patience: Patience, check: Callable[[], None]
) -> Exchange:
    """An exchange with a URL; the token is read from the environment where none is given.

    Proxies of the environment are not used for this machine's own addresses.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DiffalignError(f"{url!r} is not the address of a reward; it looks like http://HOST:PORT.")
    token = token or os.environ.get(TOKEN)
    client = httpx2.Client(
        base_url=url,
        timeout=httpx2.Timeout(timeout, connect=min(10.0, timeout)),
        headers={"Authorization": f"Bearer {token}"} if token else {},
        trust_env=not loopback(parts.hostname),
        verify=parts.scheme == "https",  # reading certificates takes a while
        limits=httpx2.Limits(keepalive_expiry=30.0),
    )
    return Exchange(url, client, timeout, patience, check)


def shortened(body: bytes, length: int = 200) -> str:
    """The beginning of an answer, for a message."""
    return repr(body[:length].decode("utf-8", "replace")) + (" ..." if len(body) > length else "")


def _received(response: httpx2.Response, end: float) -> bytes:
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > LARGEST:
            raise Failed(f"it answered more than {LARGEST} bytes.")
        if time.monotonic() > end:
            raise Failed("its answer did not end in time.")
    return bytes(body)


def _refused(response: httpx2.Response, body: bytes) -> Failed:
    """What an answer other than 200 says."""
    wished, status = response.headers.get("retry-after", ""), response.status_code
    seconds = float(wished) if wished.isdecimal() else 0.0
    return Failed(f"it answered {status} {shortened(body, 500)}.", seconds, final=status in FINAL)
