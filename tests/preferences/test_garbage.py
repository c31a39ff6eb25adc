"""What a vote points to is never removed, whatever happened before and happens meanwhile; the rest goes."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from place import pair, picture, trajectory, voted

from diffalign.errors import DiffalignError, RunError
from diffalign.preferences import Store
from diffalign.preferences.garbage import LEAST, collect


def age(folder: Path, by: timedelta = 2 * LEAST) -> None:
    """Let time pass for every file."""
    for path in folder.iterdir():
        then = path.stat().st_mtime - by.total_seconds()
        os.utime(path, (then, then))


def kept(store: Store) -> set[str]:
    return {path.stem for path in store.pictures.folder.glob("*.png")}


def test_the_voted_on_stays_and_the_rest_goes(store):
    loved, shunned, skipped = (pair(store, n) for n in range(3))
    alone = picture(store, 99, trajectory=trajectory())
    voted(store, "ann", "a", loved)
    voted(store, "ann", "b", shunned)
    store.undo("ann")
    store.skip(store.show("ann", skipped), "ann")
    age(store.pictures.folder)
    gone = store.collect_garbage(LEAST)
    assert {path.stem for path in gone} == {*skipped, alone}
    assert len(gone) == 4
    assert kept(store) == {*loved, *shunned}
    assert len(list(store.pictures.folder.iterdir())) == 4


def test_fresh_and_pending_pictures_stay(store):
    pending, fresh = pair(store, 0), picture(store, 10)
    age(store.pictures.folder)
    shown = store.show("ann", pending)
    assert picture(store, 10) == fresh
    assert store.collect_garbage(LEAST) == []
    store.vote(shown, "ann", "a")


def test_a_picture_that_stays_keeps_its_trajectory(store):
    one = picture(store, trajectory=trajectory())
    age(store.pictures.folder)
    os.utime(store.pictures.path(one))
    assert store.collect_garbage(LEAST) == []
    assert store.pictures.trajectory(one).prompts == ["a cat"]


def test_time_of_grace_is_not_given_away(store):
    with pytest.raises(DiffalignError, match="must be older than 0:05:00"):
        store.collect_garbage(timedelta(0))


def test_what_kills_left_goes_and_what_is_not_ours_stays(store):
    folder, one = store.pictures.folder, picture(store)
    parts = [folder / ".part-x.png", folder / ".part-y.safetensors"]
    others = [folder / "notes.txt", folder / "holiday.png"]
    for path in parts + others:
        path.write_text("x")
    store.pictures.path(one).rename(folder / f"{one}.png.doomed")  # by a collector that was killed
    voters = pair(store, 5)
    voted(store, "ann", "a", voters)
    store.pictures.path(voters[0]).rename(folder / f"{voters[0]}.png.doomed")
    age(folder)
    assert set(store.collect_garbage(LEAST)) == {*parts, store.pictures.path(one)}
    assert all(path.exists() for path in others)
    assert kept(store) - {"holiday"} == set(voters)


def test_a_vote_between_looking_and_removing_is_seen(store):
    """The collector has read who voted; then somebody does."""
    pictures = [picture(store, n, trajectory=trajectory(seed=n)) for n in range(2)]
    shown = store.show("ann", pictures)
    age(store.pictures.folder)

    def read_too_early():
        store.vote(shown, "ann", "a")
        return set()

    assert collect(store.pictures.folder, read_too_early, LEAST) == []
    assert store.pictures.trajectories(pictures).prompts == ["a cat"] * 2


def test_people_vote_while_garbage_is_collected(store):
    ids = [picture(store, n, trajectory=trajectory(seed=n)) for n in range(60)]
    age(store.pictures.folder)
    done, told = threading.Event(), []

    def vote(mine):
        for k in range(0, len(mine), 2):
            try:
                voted(store, f"user {mine[0]}", "a", mine[k : k + 2])
            except RunError as error:
                told.append(str(error))
            time.sleep(0.002)

    def sweep(_):
        while not done.is_set():
            store.collect_garbage(LEAST)

    with ThreadPoolExecutor(8) as threads:
        voters = [threads.submit(vote, ids[k::6]) for k in range(6)]
        sweepers = [threads.submit(sweep, n) for n in range(2)]
        for voter in voters:
            voter.result()
        done.set()
        for sweeper in sweepers:
            sweeper.result()
    pointed_at = {picture for vote in store.votes() for picture in vote.pictures}
    assert pointed_at
    assert len(store.pictures.trajectories(sorted(pointed_at))) == len(pointed_at)
    assert all("is missing" in each for each in told)


class Histories(RuleBasedStateMachine):
    """Pictures are made, shown, voted on, undone and collected in any order, while time passes."""

    pictures, showings = Bundle("pictures"), Bundle("showings")

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        self.store = Store.open(Path(self.folder.name) / "votes.db")
        self.made, self.pointed_at = 0, set()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.age_and_collect()
            assert kept(self.store) == self.pointed_at
            self.store.close()
            self.folder.cleanup()

    @rule(target=pictures, sampled=st.booleans())
    def make(self, sampled: bool) -> str:
        self.made += 1
        return picture(self.store, self.made, trajectory=trajectory(seed=self.made) if sampled else None)

    @rule(target=showings, ids=st.lists(pictures, min_size=2, max_size=3, unique=True))
    def show(self, ids: list[str]) -> tuple[int, list[str]]:
        try:
            return self.store.show("ann", ids, "ranking"), ids
        except RunError:
            assert not set(ids) <= kept(self.store)
            return 0, ids

    @rule(shown=consumes(showings))
    def vote(self, shown: tuple[int, list[str]]) -> None:
        showing, ids = shown
        try:
            self.store.vote(showing, "ann", ids[:1])
            self.pointed_at |= set(ids)
        except RunError:
            assert not set(ids) <= kept(self.store)
        except DiffalignError:
            assert showing == 0

    @rule()
    def undo(self) -> None:
        self.store.undo("ann")

    @rule(by=st.sampled_from([LEAST / 3, LEAST * 2]))
    def wait(self, by: timedelta) -> None:
        age(self.store.pictures.folder, by)

    @rule()
    def collect(self) -> None:
        self.store.collect_garbage(LEAST)

    def age_and_collect(self) -> None:
        age(self.store.pictures.folder)
        self.store.collect_garbage(LEAST)

    @invariant()
    def what_votes_point_to_is_whole(self) -> None:
        for name in getattr(self, "pointed_at", ()):
            if self.store.pictures.info(name).trajectory:
                self.store.pictures.trajectory(name)


Histories.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestHistories = Histories.TestCase
