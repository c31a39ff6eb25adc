"""A server of the app in a process of its own, and clients of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import uvicorn

from diffalign_demo.app.limits import Rate
from diffalign_demo.app.members import Members
from diffalign_demo.app.server import application
from diffalign_demo.app.session import Session

HERE = Path(__file__).parent
CLIENT = {"trust_env": False, "timeout": 60.0}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """A process that is started with a command in a folder, killed, and started again at the same port."""

    def __init__(self, command: list[str], port: int, log: Path, cwd: Path | None = None) -> None:
        self.command, self.port, self.log, self.folder, self.cwd = command, port, log, log.parent, cwd
        self.url = f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            env = os.environ | {"OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=env, cwd=self.cwd)
        for _ in range(600):
            if self.process.poll() is not None:
                raise RuntimeError(self.log.read_text())
            try:
                httpx.get(f"{self.url}/login", **CLIENT)
                return
            except httpx.TransportError:
                time.sleep(0.2)
        raise RuntimeError(f"the server does not answer: {self.log.read_text()}")

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


@contextmanager
def within(session: Session, members: Members | None = None, rate: Rate | None = None) -> Iterator[str]:
    """The app in a thread of this process; its URL."""
    port = free_port()
    app = application(session, members, rate or Rate(per_second=1000, burst=1000))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            time.sleep(0.02)
        assert server.started
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def pressed(client: httpx.Client, button: str, data: list[object]) -> str:
    """What Gradio's event of a button answers, asked for as its own page does."""
    config = client.get("/config").json()
    (number,) = [c["id"] for c in config["components"] if c["props"].get("value") == button]
    (event,) = [d["id"] for d in config["dependencies"] if [number, "click"] in d["targets"]]
    body = {"data": data, "fn_index": event, "session_hash": "abcdefghij", "trigger_id": number}
    assert client.post("/gradio_api/queue/join", json=body).status_code == 200
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "abcdefghij"}) as stream:
        return next(line for line in stream.iter_lines() if "process_completed" in line)


def scribbling(folder: Path, *flags: str) -> Server:
    """The app with a model that draws noise."""
    port = free_port()
    command = [sys.executable, str(HERE / "scribble.py"), str(folder), str(port), *flags]
    return Server(command, port, folder / "server.log")


def painting(folder: Path, *flags: str) -> Server:
    """The app as it is started by hand, with the packaged model."""
    return demo(folder, "--votes", str(folder / "votes.db"), "--runs", str(folder / "runs"), *flags)


def demo(folder: Path, *flags: str, cwd: Path | None = None) -> Server:
    """`diffalign demo` with these flags."""
    port = free_port()
    command = [sys.executable, "-m", "diffalign", "demo", *flags, "--port", str(port)]
    return Server(command, port, folder / "server.log", cwd)
