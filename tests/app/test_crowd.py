"""Fifty people vote at once, and the server is killed under them: nothing is lost, doubled or given to another."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from app.serving import CLIENT, Server, scribbling

from diffalign.preferences import Store

VOTERS = 50
CHOICES = ("a", "b", "tie", "both_bad")
LOST = (httpx.TransportError,)


@dataclass
class Voter:
    """Votes so many times, sends again what got no answer, and remembers what was acknowledged."""

    url: str
    number: int
    votes: int
    doubles: bool = False
    said: dict[int, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    problem: str = ""

    def run(self) -> None:
        try:
            with httpx.Client(base_url=self.url, **CLIENT) as client:
                self._run(client, random.Random(self.number))
        except Exception as error:
            self.problem = repr(error)

    def _run(self, client: httpx.Client, pick: random.Random) -> None:
        for n in range(self.votes):
            pair = self._insist(client, "GET", "/api/pair").json()
            choice = pick.choice(CHOICES)
            body = {
                "showing": pair["showing"],
                "choice": choice,
                "token": f"voter-{self.number}-{n}",
                "seconds": 1.0,
            }
            begun = time.perf_counter()
            answer = self._insist(client, "POST", "/api/vote", body)
            self.seconds.append(time.perf_counter() - begun)
            assert answer.status_code == 200, answer.text
            self.said[pair["showing"]] = choice
            if self.doubles:
                assert self._insist(client, "POST", "/api/vote", body).status_code == 200

    def _insist(self, client: httpx.Client, method: str, path: str, body: object = None) -> httpx.Response:
        for _ in range(400):
            try:
                answer = client.request(method, path, json=body)
                if answer.status_code not in (429, 503):
                    return answer
            except LOST:
                pass
            time.sleep(0.1)
        raise AssertionError(f"{path} was never answered")


def crowd(server: Server, votes: int, **more: bool) -> list[Voter]:
    return [Voter(server.url, number, votes, **more) for number in range(VOTERS)]


def start(voters: list[Voter]) -> list[threading.Thread]:
    threads = [threading.Thread(target=voter.run) for voter in voters]
    for thread in threads:
        thread.start()
    return threads


def check(folder: Path, voters: list[Voter], votes: int) -> None:
    assert [voter.problem for voter in voters if voter.problem] == []
    kept = Store.open(folder / "votes.db").votes()
    said = {showing: choice for voter in voters for showing, choice in voter.said.items()}
    assert len(kept) == len(said) == VOTERS * votes
    assert {vote.showing: vote.choice for vote in kept} == said
    owners = [{vote.user for vote in kept if vote.showing in voter.said} for voter in voters]
    assert all(len(own) == 1 for own in owners)
    assert len(set.union(*owners)) == VOTERS


def test_fifty_voters_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    server, votes = scribbling(tmp_path), 4
    try:
        voters = crowd(server, votes, doubles=True)
        for thread in start(voters):
            thread.join(300)
    finally:
        server.stop()
    check(tmp_path, voters, votes)
    times = np.concatenate([voter.seconds for voter in voters])
    p50, p95 = np.percentile(times, [50, 95])
    with capsys.disabled():
        print(
            f"\n{VOTERS} voters at once: a vote's round trip p50 {1000 * p50:.0f} ms, p95 {1000 * p95:.0f} ms"
        )


@pytest.mark.slow
def test_a_killed_server_keeps_what_it_acknowledged(tmp_path: Path):
    server, votes = scribbling(tmp_path), 6
    try:
        voters = crowd(server, votes)
        threads = start(voters)
        while sum(len(voter.said) for voter in voters) < VOTERS:
            time.sleep(0.02)
        server.kill()
        acknowledged = {showing: choice for voter in voters for showing, choice in dict(voter.said).items()}
        store = Store.open(tmp_path / "votes.db")
        kept = {vote.showing: vote.choice for vote in store.votes()}
        store.close()
        assert acknowledged.items() <= kept.items()
        server.start()
        for thread in threads:
            thread.join(300)
    finally:
        server.stop()
    check(tmp_path, voters, votes)
