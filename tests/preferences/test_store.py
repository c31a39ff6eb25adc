"""What was shown, voted, skipped and undone is what is read, and nobody votes for another."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import pytest
from place import pair, picture, voted
from sqlalchemy import text

from diffalign import __version__
from diffalign.errors import DiffalignError


def test_a_vote_is_read_as_it_was_cast(store):
    a, b = pair(store, models=("base", "tuned@3"))
    shown = store.show("Ann é", [b, a])
    before = datetime.now(UTC)
    store.vote(shown, "Ann é", "b", seconds=1.8, token="t1")
    (vote,) = store.votes()
    assert (vote.user, vote.prompt, vote.kind) == ("Ann é", "a cat", "pair")
    assert (vote.pictures, vote.models) == ((b, a), ("tuned@3", "base"))
    assert (vote.choice, vote.seconds, vote.version, vote.showing) == ("b", 1.8, __version__, shown)
    assert abs((vote.time - before).total_seconds()) < 10
    assert vote.pairs() == [(a, b)]


@pytest.mark.parametrize("choice", ["tie", "both_bad"])
def test_who_prefers_none_makes_no_pair(store, choice):
    voted(store, "ann", choice, pair(store))
    assert store.votes()[0].pairs() == []


def test_a_ranking_gives_all_its_pairs(store):
    a, b, c, d = (picture(store, n) for n in range(4))
    shown = store.show("ann", [a, b, c, d], "ranking")
    assert store.vote(shown, "ann", [c, a]).choice == [c, a]
    (vote,) = store.votes()
    assert set(vote.pairs()) == {(c, a), (c, b), (c, d), (a, b), (a, d)}


def test_a_repeated_request_is_one_vote(store):
    shown = store.show("ann", pair(store))
    first = store.vote(shown, "ann", "a", seconds=2.0, token="t1")
    assert store.vote(shown, "ann", "a", seconds=9.0, token="t1") == first
    assert store.votes() == [first]


def test_a_repeated_request_after_an_undo_brings_nothing_back(store):
    shown = store.show("ann", pair(store))
    store.vote(shown, "ann", "a", token="t1")
    store.undo("ann")
    store.vote(shown, "ann", "a", token="t1")
    assert store.votes() == []


def test_a_token_of_another_vote_is_refused(store):
    shown = store.show("ann", pair(store))
    store.vote(shown, "ann", "a", token="t1")
    with pytest.raises(DiffalignError, match="belongs to another vote"):
        store.vote(store.show("ann", pair(store, 1)), "ann", "a", token="t1")
    with pytest.raises(DiffalignError, match="belongs to another vote"):
        store.vote(shown, "ann", "b", token="t1")


def test_a_showing_is_answered_once(store):
    shown = store.show("ann", pair(store))
    store.vote(shown, "ann", "a", token="t1")
    with pytest.raises(DiffalignError, match="answered already"):
        store.vote(shown, "ann", "b", token="t2")
    with pytest.raises(DiffalignError, match="answered already"):
        store.skip(shown, "ann")


def test_only_what_was_shown_to_a_user_is_voted_on(store):
    shown = store.show("ann", pair(store))
    for act in (lambda: store.vote(shown, "bob", "a"), lambda: store.skip(shown, "bob")):
        with pytest.raises(DiffalignError, match="was shown to 'bob'"):
            act()
    with pytest.raises(DiffalignError, match="nothing with the id 999"):
        store.vote(999, "ann", "a")
    assert store.votes() == []


def test_undo_takes_back_the_users_own_latest_vote(store):
    first, second = (store.show("ann", pair(store, n)) for n in range(2))
    store.vote(first, "ann", "a")
    store.vote(second, "ann", "b")
    voted(store, "bob", "tie", pair(store))
    assert store.undo("ann").showing == second
    assert store.vote(second, "ann", "a").choice == "a"
    assert [(vote.user, vote.choice) for vote in store.votes()] == [
        ("ann", "a"),
        ("bob", "tie"),
        ("ann", "a"),
    ]
    assert [store.undo("ann").showing, store.undo("ann").showing] == [second, first]
    assert store.undo("ann") is None
    assert [vote.user for vote in store.votes()] == ["bob"]


def test_undo_of_a_kind_leaves_the_other_kind(store):
    voted(store, "ann", "a", pair(store))
    ids = pair(store, 1)
    ranked = store.vote(store.show("ann", ids, "ranking"), "ann", [ids[0]])
    assert store.undo("ann", "pair").kind == "pair"
    assert store.undo("ann", "pair") is None
    assert store.votes() == [ranked]
    assert store.undo("ann", "ranking") == ranked


def test_a_repeated_undo_takes_back_one_vote(store):
    for n in range(2):
        voted(store, "ann", "a", pair(store, n))
    assert store.undo("ann", token="u1") == store.undo("ann", token="u1")
    assert store.count() == 1
    with pytest.raises(DiffalignError, match="another user's undo"):
        store.undo("bob", token="u1")


def test_a_skipped_showing_has_no_vote(store):
    shown = store.show("ann", pair(store))
    store.skip(shown, "ann")
    store.skip(shown, "ann")
    assert store.votes() == []
    assert store.undo("ann") is None
    with pytest.raises(DiffalignError, match="answered already"):
        store.vote(shown, "ann", "a")


def test_votes_are_told_apart_by_user_and_model(store):
    voted(store, "ann", "a", pair(store, 0, ("base", "tuned")))
    voted(store, "bob", "b", pair(store, 1))
    assert [v.user for v in store.votes(users=["bob", "eve"])] == ["bob"]
    assert [v.user for v in store.votes(users="ann")] == ["ann"]
    assert [v.user for v in store.votes(models=["base"])] == ["bob"]
    assert len(store.votes(models=["base", "tuned"])) == store.count() == 2
    assert store.count("eve") == 0


def test_events_are_only_added(store, place):
    def events() -> dict[str, list]:
        with place.engine().connect() as connection:
            tables = ("showings", "answers", "undos")
            return {t: connection.execute(text(f"SELECT * FROM {t} ORDER BY id")).all() for t in tables}

    shown = store.show("ann", pair(store))
    store.vote(shown, "ann", "a")
    before = events()
    store.undo("ann")
    store.vote(shown, "ann", "b")
    store.undo("ann")
    store.skip(shown, "ann")
    after = events()
    assert all(after[table][: len(rows)] == rows for table, rows in before.items())
    assert {table: len(rows) for table, rows in after.items()} == {"showings": 1, "answers": 3, "undos": 2}


def test_another_store_reads_what_was_acknowledged(store, place):
    voted(store, "ann", "a", pair(store))
    other = place.open()
    assert other.votes() == store.votes()
    other.close()


@pytest.mark.parametrize(
    ("pictures", "kind", "says"),
    [
        ([0], "pair", "two different pictures"),
        ([0, 0], "pair", "two different pictures"),
        ([0, 1, 2], "pair", "two different pictures"),
        ([0], "ranking", "two or more"),
        ([0, 1], "match", "'pair' or a 'ranking'"),
        ([0, 3], "pair", "of one prompt"),
    ],
)
def test_what_cannot_be_compared_is_not_shown(store, pictures, kind, says):
    ids = [picture(store, n) for n in range(3)] + [picture(store, 3, prompt="a dog")]
    with pytest.raises(DiffalignError, match=says):
        store.show("ann", [ids[n] for n in pictures], kind)


@pytest.mark.parametrize("choice", ["A", "", ["a"], None, 0])
def test_what_cannot_be_chosen_is_refused(store, choice):
    with pytest.raises(DiffalignError, match="one of a, b, tie, both_bad"):
        store.vote(store.show("ann", pair(store)), "ann", choice)


@pytest.mark.parametrize("ranked", [[], ["0" * 64], "tie", "double"])
def test_a_ranking_is_of_what_was_shown(store, ranked):
    ids = pair(store)
    with pytest.raises(DiffalignError, match="ids of pictures that were shown"):
        store.vote(store.show("ann", ids, "ranking"), "ann", [ids[0]] * 2 if ranked == "double" else ranked)


@pytest.mark.parametrize("user", ["", "a\0b", "\ud800", None])
def test_names_that_no_database_keeps_are_refused(store, user):
    with pytest.raises(DiffalignError, match="user's name is text"):
        store.show(user, pair(store))


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_response_time_is_a_time(store, seconds):
    with pytest.raises(DiffalignError, match="number of seconds"):
        store.vote(store.show("ann", pair(store)), "ann", "a", seconds=seconds)
    assert store.votes() == []


def test_without_its_libraries_it_says_what_to_install():
    code = "import sys; sys.modules['sqlalchemy'] = None; import diffalign.preferences"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "DiffalignError: votes are stored with sqlalchemy" in done.stderr
    assert "pip install 'diffalign[demo]'" in done.stderr
