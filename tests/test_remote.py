"""A reward at a URL: what it does with servers that fail. Every server is a real process."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
import served
import torch

from diffalign.errors import DiffalignError, RunError
from diffalign.reward import capability
from diffalign.serving import wire
from diffalign.serving.exchange import Patience
from diffalign.serving.remote import connect

IMAGES, PROMPTS = served.pictures(3), ["a", "b", "c"]
GOOD = torch.full((3,), 0.25)
CARD = wire.Card(name="odd", arguments={}, capabilities={}, limits=wire.Limits(), versions={})


class Misbehaving:
    """The server of misbehaving.py."""

    def __init__(self, folder: Path) -> None:
        self.card, self.told, self.log = (folder / name for name in ("card.json", "told", "log"))
        self.card.write_text(CARD.model_dump_json())
        self.tell("good")
        self.port = 0
        self.start()

    def start(self) -> None:
        program = str(Path(__file__).with_name("misbehaving.py"))
        arguments = [str(p) for p in (self.card, self.told, self.log, self.port)]
        self.process = subprocess.Popen(
            [sys.executable, "-S", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def tell(self, *what: str) -> None:
        self.told.write_text("\n".join(what))

    def requests(self) -> list[tuple[float, str]]:
        """(time, what was done) of every request for scores."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(float(when), what) for when, _, what in (line.partition(" ") for line in lines)]

    def reward(self, timeout: float = 5.0, **patience):
        found = connect(f"http://127.0.0.1:{self.port}", timeout=timeout)
        found.exchange.patience = Patience(**{"tries": 4, "first": 0.02, "longest": 0.2, **patience})
        return found


@pytest.fixture
def server(tmp_path):
    made = Misbehaving(tmp_path)
    yield made
    made.stop()


FAILURES = [
    ("status 500", "500 .*as told"),
    ("status 502", "502"),
    ("status 503 0", "503"),
    ("status 429", "429"),
    ("garbage", "not scores: '<html>"),
    ("short", "2 scores for 3 pictures"),
    ("nan", "not finite"),
    ("cut", "RemoteProtocolError"),
    ("drop", "RemoteProtocolError"),
    ("endless", "more than 16777216 bytes"),
]


@pytest.mark.parametrize(("what", "says"), FAILURES)
def test_a_failing_server_is_asked_again_then_the_run_stops_and_can_go_on(server, what, says):
    server.tell(what)
    with pytest.raises(RunError, match=says) as caught:
        server.reward()(IMAGES, PROMPTS)
    assert [done for _, done in server.requests()] == [what] * 4
    for part in (f"http://127.0.0.1:{server.port}", "asked 4 time(s)", "resume"):
        assert part in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("what", [what for what, _ in FAILURES] + ["hang", "drip"])
def test_a_server_that_recovers_in_time_is_forgiven(server, what):
    server.tell(what, what, "good")
    assert torch.equal(server.reward(timeout=0.5)(IMAGES, PROMPTS).value, GOOD)
    assert len(server.requests()) == 3


@pytest.mark.parametrize("what", ["hang", "drip"])
def test_a_hanging_server_is_given_up(server, what):
    server.tell(what)
    with pytest.raises(RunError, match=r"0\.3 s|in time"):
        server.reward(timeout=0.3, tries=2)(IMAGES, PROMPTS)
    assert len(server.requests()) == 2


@pytest.mark.parametrize("status", [400, 401, 413, 422])
def test_what_would_be_refused_again_is_not_repeated(server, status):
    server.tell(f"status {status}")
    with pytest.raises(RunError, match=str(status)):
        server.reward()(IMAGES, PROMPTS)
    assert len(server.requests()) == 1


def test_pauses_grow_and_the_servers_wish_is_heard(server):
    server.tell("status 500", "status 500", "status 500", "status 503 1", "good")
    server.reward(tries=5, first=0.2, longest=5.0)(IMAGES, PROMPTS)
    times = [when for when, _ in server.requests()]
    pauses = [b - a for a, b in pairwise(times)]
    assert all(pause >= 0.1 * 2**k for k, pause in enumerate(pauses[:3]))
    assert pauses[3] >= 1.0


def test_delays_are_doubled_jittered_and_bounded():
    patience = Patience(first=0.5, longest=8.0)
    for failures in range(1, 12):
        drawn = [patience.delay(failures) for _ in range(200)]
        full = min(8.0, 0.5 * 2 ** (failures - 1))
        assert full / 2 <= min(drawn) < max(drawn) <= full
    assert patience.delay(1, wished=3.0) == 3.0
    assert patience.delay(1, wished=1e9) == 8.0


def test_killed_in_the_middle_of_a_request(server):
    server.tell("die")
    with pytest.raises(RunError, match=r"ConnectError.* asked 4 time\(s\)"):
        server.reward()(IMAGES, PROMPTS)
    assert server.process.wait(10) == -signal.SIGKILL


def test_killed_and_back_in_time(server):
    server.tell("die", "good")
    reward, back = (
        server.reward(tries=100),
        threading.Thread(target=lambda: (server.process.wait(), server.start())),
    )
    back.start()
    assert torch.equal(reward(IMAGES, PROMPTS).value, GOOD)
    back.join()


def test_closing_ends_a_wait(server):
    server.tell("status 500")
    reward, caught = server.reward(first=100.0, longest=100.0), []

    def ask():
        try:
            reward(IMAGES, PROMPTS)
        except RunError as error:
            caught.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert served.until(lambda: len(server.requests()) == 1)
    time.sleep(0.1)
    reward.close()
    asking.join(5)
    assert "closed" in str(caught[0])


# -- connecting -------------------------------------------------------------------------------


def test_nobody_there_names_the_command():
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(DiffalignError, match="diffalign reward serve NAME --port") as caught:
        connect(url)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://host", "http://", "reward"])
def test_what_is_no_address_is_said(url):
    with pytest.raises(DiffalignError, match="http://HOST:PORT"):
        connect(url)


@pytest.mark.parametrize(
    ("card", "says"), [("{}", "no reward answers"), ('{"protocol": 2, "new": 1}', "protocol 2")]
)
def test_what_is_no_reward_server_is_said(server, card, says):
    whole = CARD.model_dump_json()
    server.card.write_text(whole.replace('"protocol":1', card[1:-1]) if "protocol" in card else card)
    with pytest.raises(DiffalignError, match=says):
        server.reward()


def test_it_declares_where_it_runs(server):
    reward = server.reward()
    assert [capability(reward, name) for name in ("remote", "differentiable", "video")] == [
        True,
        False,
        False,
    ]


def test_metadata_is_not_dropped_silently(server):
    with pytest.raises(DiffalignError, match="reference"):
        server.reward()(IMAGES, PROMPTS, reference=IMAGES)


@pytest.mark.slow
def test_a_killed_real_server_that_comes_back_goes_on(tmp_path):
    name = served.write(tmp_path) + ":Bright"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    with served.serving(name, "--port", port) as (url, process):
        reward = connect(url, tries=1000)
        reward.exchange.patience = Patience(tries=1000, first=0.1, longest=0.1)
        results = []
        asking = threading.Thread(
            target=lambda: results.append(reward(IMAGES, [f"until {tmp_path / 'x'}"] * 3))
        )
        asking.start()
        time.sleep(1)
        process.send_signal(signal.SIGKILL)
    (tmp_path / "x").touch()
    with served.serving(name, "--port", port):
        asking.join(60)
    torch.testing.assert_close(results[0].value, IMAGES.flatten(1).mean(1))
