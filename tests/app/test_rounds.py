"""Rounds with people: the trainer shows what it has become, waits for votes on that, and learns from them alone."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from app.serving import CLIENT, painting, pressed

from diffalign.launching import build
from diffalign.preferences import Store
from diffalign.settings import config
from diffalign_demo.app import markup
from diffalign_demo.app.runs import Runs, waits
from diffalign_demo.app.tab_align import EVERYBODY
from diffalign_demo.app.training import PATIENCE, Progress, Training

pytestmark = pytest.mark.weights
ROUNDS = (
    "emoji-d3po-votes preferences={votes} wait=true rounds=2 prompts_per_round=4 heldout_limit=2 lr=0.002"
)
SECONDS = 600.0
"""After which something hangs."""


class Voter:
    """Votes, now for the left picture, now for the right one, as long as the training waits."""

    def __init__(self, client: httpx.Client) -> None:
        self.client, self.votes, self.waited = client, 0, set[int]()

    def until(self, there: Path) -> None:
        """Vote until a file or folder is there."""
        end = time.monotonic() + SECONDS
        while not there.exists():
            assert time.monotonic() < end, f"{there} never came"
            waits = self.client.get("/api/counts").json()["waits"]
            self.waited.add(waits)
            self.vote() if waits else time.sleep(0.3)

    def vote(self) -> list[str]:
        """Vote on one pair; its pictures."""
        while (answer := self.client.get("/api/pair")).status_code == 503:  # still being drawn
            pass
        pair = answer.json()
        vote = {"showing": pair["showing"], "choice": "ab"[self.votes % 2], "token": f"vote-{self.votes:05}"}
        self.client.post("/api/vote", json=vote).raise_for_status()
        self.votes += 1
        time.sleep(0.1)
        return pair["pictures"]


def versions(*folders: Path) -> list[str]:
    """What pictures by the weights in these folders are marked with."""
    settings = config.load("emoji-d3po-votes", [])
    policy, found = build.policy(settings, build.accelerator(settings)), []
    for folder in folders:
        policy.load(folder)
        found.append("+".join(filter(None, ("emoji", policy.version))))
    return found


@pytest.mark.slow
def test_people_and_trainer_take_turns(tmp_path: Path):
    server = painting(tmp_path, "--train", ROUNDS)
    run = tmp_path / "runs" / "emoji-d3po-votes-1"
    try:
        with httpx.Client(base_url=server.url, **CLIENT) as client:
            pressed(client, "Train from the votes", [EVERYBODY, False])
            voter = Voter(client)
            voter.until(run / "summary.json")
            first, second, last = versions(run / "live/round-0000", run / "live/round-0001", run / "lora")
            store = Store.open(tmp_path / "votes.db")
            assert store.pictures.info(drawn_last(voter, store, last)).model == last
            votes = Counter(vote.models for vote in store.votes())
            store.close()
    finally:
        server.stop()
    assert first == "emoji"
    assert len({first, second, last}) == 3
    assert votes[first, first] >= 4
    assert votes[second, second] >= 4
    assert {4, 0} <= voter.waited <= {0, 1, 2, 3, 4}


def drawn_last(voter: Voter, store: Store, model: str) -> str:
    """A picture of a pair that was offered once the app draws with the last weights."""
    end = time.monotonic() + SECONDS
    while store.pictures.info(picture := voter.vote()[0]).model != model:
        assert time.monotonic() < end, f"the app never drew with {model}"
    return picture


def test_a_run_that_waits_for_votes_stops_at_once(tmp_path: Path):
    votes = tmp_path / "votes.db"
    Store.open(votes).close()
    words = ROUNDS.replace("{votes}", str(votes)).split()
    training = Training(words, Runs(tmp_path / "runs", "emoji", str(votes)))
    training.start()
    end = time.monotonic() + SECONDS
    while not waits(training.folder):
        assert training.running, training.progress().words
        assert time.monotonic() < end
        time.sleep(0.2)
    begun = time.monotonic()
    training.stop()
    assert time.monotonic() - begun < PATIENCE
    assert training.progress().state == "stopped"


def test_the_page_says_for_how_many_votes_it_waits():
    now = Progress("running", "emoji-d3po-votes-1", 1, 2)
    assert "round 1 of 2 · waits for 3 vote(s)" in markup.progress(now, 3, "")
    assert "waits" not in markup.progress(now, 0, "")
