"""docs/people.md, followed literally: a voting session of colleagues, from install to aligned model."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from app.serving import CLIENT, Server, demo
from packages import ROOT
from safetensors import safe_open
from test_readme import commands
from typer.testing import CliRunner

from diffalign.commands.cli import app
from diffalign.models.weights import LORA_FILE
from diffalign.preferences import Store

pytestmark = pytest.mark.weights
PAGE = (ROOT / "docs" / "people.md").read_text(encoding="utf-8")
SMALL = ["rounds=1", "prompts_per_round=4", "heldout_limit=2", "trackers=[]", "diversity=null"]
"""What makes a training run small; everything else is as the page says."""
VOTES = 3
"""Of every voter, in every app that is opened."""

Run = Callable[[list[str], str], str]
"""Runs a command of diffalign, with what is typed; what it prints."""


def as_process(words: list[str], typed: str) -> str:
    """In a process of its own, without a terminal, so that passwords come from what is typed."""
    done = subprocess.run(
        [sys.executable, "-m", "diffalign", *words],
        input=typed, capture_output=True, text=True, start_new_session=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def at_once(words: list[str], typed: str) -> str:
    """Here, where all is imported already."""
    done = CliRunner().invoke(app, words, input=typed)
    assert done.exit_code == 0, f"{words}: {done.output}{done.exception}"
    return done.stdout


class Follower:
    """Somebody who does in a folder what the page says; the colleagues vote whenever an app opens."""

    def __init__(self, folder: Path, run: Run) -> None:
        self.folder, self.run = folder, run
        self.passwords: dict[str, str] = {}
        self.server: Server | None = None
        self.said: dict[str, str] = {}

    def follow(self, command: list[str]) -> None:
        """Do one line of a console block."""
        match command:
            case ["pip", "install", _]:
                pass  # it is, or this test would not run
            case ["diffalign", "demo", *flags]:
                self.open(flags)
            case ["diffalign", "demo-user", name, *_]:
                self.passwords[name] = f"{name} and a horse"
                self.run(command[1:], f"{self.passwords[name]}\n" * 2)
            case ["diffalign", "train", *_]:
                self.run([*command[1:], *SMALL], "")
            case ["diffalign", *words]:
                self.said[" ".join(words[:2])] = self.run(words, "")
            case _:
                raise AssertionError(f"nobody knows how to follow {command}")

    def open(self, flags: list[str]) -> None:
        """Open an app where the last one was, and vote in it."""
        self.close()
        self.server = demo(self.folder, *flags, cwd=self.folder)
        for name in self.passwords if "--auth" in flags else [""]:
            with self.client(name) as client:
                vote(client, VOTES)

    @contextmanager
    def client(self, name: str) -> Iterator[httpx.Client]:
        """A browser; with a name, one that has logged in."""
        assert self.server is not None
        with httpx.Client(base_url=self.server.url, **CLIENT) as client:
            if name:
                login = client.post("/login", data={"name": name, "password": self.passwords[name]})
                assert login.headers["location"] == "/"
            yield client

    def close(self) -> None:
        if self.server:
            self.server.stop()


def vote(client: httpx.Client, votes: int) -> None:
    for number in range(votes):
        while (answer := client.get("/api/pair")).status_code == 503:
            time.sleep(0.2)
        pair = answer.json()
        body = {"showing": pair["showing"], "choice": "ab"[number % 2], "token": f"{pair['showing']:08}"}
        client.post("/api/vote", json=body).raise_for_status()


@contextmanager
def following(folder: Path, run: Run, page: list[list[str]]) -> Iterator[Follower]:
    """The page, followed to its end, with the app still open."""
    reader = Follower(folder, run)
    try:
        for command in page:
            reader.follow(command)
        yield reader
    finally:
        reader.close()


def check(reader: Follower, run: str, voters: set[str]) -> None:
    """What the page promises, with this run the newest."""
    folder = reader.folder
    store = Store.open(folder / "votes.db")
    assert {vote.user for vote in store.votes()} >= {"ann", "bob"}
    assert {re.sub("guest-.*", "guest", vote.user) for vote in store.votes()} == voters
    store.close()
    assert (folder / "runs" / run / "report.html").stat().st_size > 1000
    with safe_open(folder / "loras" / "ours.safetensors", "pt") as file:
        assert all(key.startswith("lora_unet_") for key in file.keys())  # noqa: SIM118 - no mapping
    assert "ann" in reader.said["votes show"]
    assert (folder / "votes.parquet").is_file()
    assert "0 files removed" in reader.said["votes clean"]
    runpy.run_path(str(script(folder)))
    drawn_with(reader, folder / "runs" / run / "lora")


def script(folder: Path) -> Path:
    ((name, code),) = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL)
    (folder / name).write_text(code)
    return folder / name


def drawn_with(reader: Follower, lora: Path) -> None:
    """Wait until the app hands out this LoRA."""
    with reader.client("ann") as client:
        for _ in range(300):
            answer = client.get("/api/lora")
            if answer.status_code == 200 and answer.content == (lora / LORA_FILE).read_bytes():
                return
            time.sleep(0.2)
    raise AssertionError(f"the app never took over {lora}: {reader.server.log.read_text()}")


@pytest.mark.slow
def test_the_page_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with following(tmp_path, as_process, commands(PAGE)) as reader:
        check(reader, "emoji-d3po-votes-3", {"guest", "ann", "bob"})


def test_a_session_of_colleagues_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same in one process but for the app, without the app of one person and the two ways to weigh voters."""
    monkeypatch.chdir(tmp_path)
    left_out = [command for command in commands(PAGE) if "voters=" in command[-1] or len(command) == 2]
    assert len(left_out) == 3
    page = [command for command in commands(PAGE) if command not in left_out]
    with following(tmp_path, at_once, page) as reader:
        check(reader, "emoji-d3po-votes", {"ann", "bob"})
