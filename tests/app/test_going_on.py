"""The app goes on with what was learned from its votes, before it was started and by other hands since."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from app.trained import trained

from diffalign.errors import DiffalignError
from diffalign.folders.runfolder import RunFolder
from diffalign.training.live import Live
from diffalign_demo.app.options import Options
from diffalign_demo.app.runs import Runs
from diffalign_demo.app.session import Session, begin
from diffalign_demo.app.training import Training


def fake(folder: Path, name: str, seconds: float, weights: str = "lora", **told: object) -> Path:
    """A run as far as its folder tells, whose weights were written at a time."""
    run = folder / name
    (run / weights).mkdir(parents=True)
    told = {"model": "emoji", "preferences": "votes.db"} | told
    (run / "config.yaml").write_text(yaml.safe_dump(told))
    os.utime(run / weights, (seconds, seconds))
    return run


def newest(folder: Path, since: float = 0.0) -> str | None:
    run = Runs(folder, "emoji", "votes.db").newest(since)
    return run.path.name if run else None


def test_the_newest_run_that_learned_from_these_votes_counts(tmp_path: Path):
    assert newest(tmp_path / "missing") is None
    fake(tmp_path, "older", 100)
    fake(tmp_path, "right", 200)
    fake(tmp_path, "other-model", 300, model="sd15")
    fake(tmp_path, "other-votes", 300, preferences="postgresql://x/votes")
    fake(tmp_path, "from-a-reward", 300, preferences=None)
    (fake(tmp_path, "broken", 300) / "config.yaml").write_text("{")
    fake(tmp_path, "without-weights", 300, weights="samples")
    assert newest(tmp_path) == "right"
    assert newest(tmp_path, since=250) is None


def test_a_store_has_one_name_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    fake(tmp_path / "runs", "run", 100, preferences=str(tmp_path / "votes.db"))
    assert newest(tmp_path / "runs") == "run"


def test_rounds_that_people_were_shown_count_until_the_run_ends(tmp_path: Path):
    fake(tmp_path, "run", 100, weights="live/round-0001")
    assert newest(tmp_path) == "run"


def test_a_run_that_waits_comes_first_and_a_dead_one_waits_for_nobody(tmp_path: Path):
    dead = fake(tmp_path, "dead", 100, weights="live/round-0001")
    fake(tmp_path, "done", 200)
    waiting = fake(tmp_path, "waiting", 50, weights="live/round-0000")
    assert newest(tmp_path) == "done"
    training = Training([], Runs(tmp_path, "emoji", "votes.db"))
    training.folder = RunFolder(dead)
    assert training.progress().state == "unfinished"
    with Live(waiting / "live").waiting():
        assert newest(tmp_path, since=250) == "waiting"
        assert training.look().path == waiting
        assert training.progress().state == "running"
        for leaving in (training.start, training.stop):
            with pytest.raises(DiffalignError, match="was not started here"):
                leaving()


class Began:
    """An app that was begun, and what it said."""

    def __init__(self, folder: Path, **more: bool) -> None:
        self.said: list[str] = []
        options = Options(votes=str(folder / "votes.db"), runs=folder / "runs", **more)
        self.session: Session = begin(options, self.said.append)

    def __enter__(self) -> Session:
        return self.session

    def __exit__(self, *raised: object) -> None:
        self.session.close()


@pytest.mark.weights
def test_an_app_goes_on_with_the_newest_run_and_says_so(tmp_path: Path):
    votes, runs = str(tmp_path / "votes.db"), tmp_path / "runs"
    first = trained(runs / "first", votes)
    with Began(tmp_path) as session:
        assert session.studio.main.name == f"emoji+{first}"
        assert session.alignment.lora() == runs / "first" / "lora" / "pytorch_lora_weights.safetensors"
        assert session.alignment.training.progress().state == "done"
        second = trained(runs / "second", votes, seed=1)
        session.alignment.look()
        assert session.studio.main.name == f"emoji+{second}" != f"emoji+{first}"


@pytest.mark.weights
def test_fresh_begins_with_the_model_as_it_was(tmp_path: Path):
    trained(tmp_path / "runs" / "run", str(tmp_path / "votes.db"))
    began = Began(tmp_path, fresh=True)
    with began as session:
        assert session.studio.main.name == "emoji"
        assert session.alignment.lora() is None
    assert not any("going on" in words for words in began.said)


@pytest.mark.weights
def test_weights_that_do_not_fit_are_told_and_left_alone(tmp_path: Path):
    trained(tmp_path / "runs" / "run", str(tmp_path / "votes.db"), "lora={rank: 2}")
    began = Began(tmp_path)
    with began as session:
        assert session.studio.main.name == "emoji"
        assert session.alignment.lora() is None
    assert "does not fit" in began.said[-1]
    assert "LoRA rank" in began.said[-1]
