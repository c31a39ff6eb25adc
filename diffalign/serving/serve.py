"""Serves a reward over HTTP: GET /health, GET /card, POST /score (see `wire` for what travels).

Loopback without a token, anything wider with one. Memory is bounded: by limits on a request, and by
how many requests are taken at once; others are told to come again.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import platform
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool

import diffalign
from diffalign import registry
from diffalign.errors import DiffalignError, RunError
from diffalign.reward import AnyReward, Scores, capability, kind
from diffalign.serving import wire
from diffalign.serving.batcher import Batcher, Job

CAPABILITIES = ("video", "needs_reference", "differentiable")


@dataclass
class Server:
    """One reward, what it takes, and at most `waiting` requests under way; a body must come in `seconds`."""

    card: wire.Card
    batcher: Batcher
    token: str | None = None
    waiting: int = 16
    seconds: float = 60.0
    under_way: int = field(default=0, init=False)

    def app(self) -> FastAPI:
        """The application."""
        app = FastAPI(
            title=f"diffalign reward {self.card.name}", docs_url=None, redoc_url=None, openapi_url=None
        )
        app.get("/health")(self.health)
        app.get("/card", dependencies=[Depends(self.authorise)])(self.show)
        app.post("/score", dependencies=[Depends(self.authorise)])(self.score)
        return app

    async def health(self) -> dict[str, Any]:
        """That the server is up, and how much it has done; needs no token."""
        work = self.batcher
        counts = {"queued": work.queued, "batches": work.batches, "scored": work.scored}
        return {"status": "ok", "under_way": self.under_way, **counts}

    async def show(self) -> wire.Card:
        """What is served."""
        return self.card

    async def score(self, request: Request) -> Response:
        """The scores of a request's pictures."""
        async with self.admitted():
            body = await self.body(request)
            job = await run_in_threadpool(self.job, body)
            scores = await self.scores(request, job)
        return Response(wire.Answer.of(scores).model_dump_json(), media_type="application/json")

    # -- who and how much ---------------------------------------------------------------------

    async def authorise(self, request: Request) -> None:
        """401 without the token, where there is one; compared in constant time."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.token is not None and not hmac.compare_digest(given.encode(), self.token.encode()):
            raise HTTPException(401, "the bearer token is missing or wrong.", {"WWW-Authenticate": "Bearer"})

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """A place among the requests under way, before anything of the body is read; or 503."""
        if self.under_way >= self.waiting:
            raise HTTPException(
                503, f"{self.under_way} requests are waiting; come again.", {"Retry-After": "1"}
            )
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    async def body(self, request: Request) -> bytes:
        """The body, as far as it is JSON, not too large and not too slow."""
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise HTTPException(415, "send application/json.")  # also keeps web pages out, which may not
        limit, body = self.card.limits.bytes, bytearray()
        try:
            async with asyncio.timeout(self.seconds):
                async for piece in request.stream():
                    body += piece
                    if len(body) > limit:
                        raise HTTPException(
                            413, f"the request has more than {limit} bytes; send fewer items."
                        )
        except TimeoutError:
            raise HTTPException(408, f"the request was not complete after {self.seconds} s.") from None
        return bytes(body)

    def job(self, body: bytes) -> Job:
        """The pictures of a request; 422 says what is wrong with it."""
        try:
            asked = wire.Request.model_validate_json(body)
            images = wire.decode(asked, self.card.limits)
        except (ValueError, DiffalignError) as error:
            raise HTTPException(422, str(error)[:1000]) from error
        if asked.video and not self.card.capabilities["video"]:
            raise HTTPException(422, f"{self.card.name} scores pictures, not video.")
        return Job(images, [item.prompt for item in asked.items])

    async def scores(self, request: Request, job: Job) -> Scores:
        """What the batcher returns; a job whose client has gone is taken back."""
        result = asyncio.wrap_future(self.batcher.submit(job))
        gone = asyncio.ensure_future(_disconnected(request))
        either: set[asyncio.Future[Any]] = {result, gone}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                result.cancel()
                raise HTTPException(499, "the client has gone.")
            return result.result()
        except DiffalignError as error:  # 422: what the reward calls bad input would be bad again
            raise HTTPException(500 if isinstance(error, RunError) else 422, str(error)) from error
        finally:
            gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# -- starting ---------------------------------------------------------------------------------


def serve(server: Server, bound: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Answer requests at a bound socket until the process is told to stop; `ready` is called before."""
    config = uvicorn.Config(
        server.app(), log_level="warning", timeout_keep_alive=60, timeout_graceful_shutdown=5, lifespan="off"
    )
    bound.listen(128)
    ready()
    uvicorn.Server(config).run(sockets=[bound])


def make(
    name: str,
    arguments: Mapping[str, Any],
    limits: wire.Limits | None = None,
    *,
    wait: float = 0.005,
    device: str | None = None,
    **more: Any,
) -> Server:
    """A server of the reward `name` on a device; wait: see Batcher, and `more` are fields of Server."""
    limits = limits or wire.Limits()
    reward = registry.reward(name, **arguments)
    refuse_sets(name, reward)
    batcher = Batcher(reward, name, limits.items, wait, device or default_device())
    return Server(card(name, arguments, reward, limits), batcher, **more)


def card(name: str, arguments: Mapping[str, Any], reward: AnyReward, limits: wire.Limits) -> wire.Card:
    """What is served, in words and numbers."""
    versions = {
        "diffalign": diffalign.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    return wire.Card(
        name=name, arguments=dict(arguments), limits=limits, versions=versions,
        capabilities={key: capability(reward, key) for key in CAPABILITIES},
    )  # fmt: skip


def refuse_sets(name: str, reward: AnyReward) -> None:
    """Only rewards that score every picture by itself can be merged and split."""
    if kind(reward) != "picture":
        raise DiffalignError(
            f"{name} scores groups or sets of pictures; only a reward that scores each by itself can be served."
        )


def default_device() -> torch.device:
    """This process's GPU, or the CPU; torch.accelerator is younger than what other environments may hold."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def bind(host: str, port: int, token: str | None) -> socket.socket:
    """A bound socket, port 0 choosing a free one; other hosts than this one only with a token."""
    if not wire.loopback(host) and not token:
        raise DiffalignError(
            f"{host} can be reached from other machines, so a token is needed: give --token (or {wire.TOKEN}), or keep "
            "to --host 127.0.0.1."
        )
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise DiffalignError(
            f"cannot listen at {host}:{port}: {error}. Choose another --port or --host."
        ) from error
    return bound
