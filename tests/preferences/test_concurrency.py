"""Fifty people vote at once: no vote lost, none doubled, none under another's name."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

from place import pair, voted

USERS, VOTES = 50, 6


def test_many_voters_whose_requests_are_repeated(store, place):
    pairs = [pair(store, n) for n in range(VOTES)]
    reader, seen = place.open(), []
    reading = threading.Event()

    def read():
        while not reading.wait(0.01):
            seen.append(reader.count())

    def vote(user):
        rng = random.Random(user)
        for n, pictures in enumerate(pairs):
            shown, choice = store.show(user, pictures), rng.choice(["a", "b", "tie"])
            with ThreadPoolExecutor(2) as twice:
                requests = [
                    twice.submit(store.vote, shown, user, choice, token=f"{user}-{n}") for _ in range(2)
                ]
                assert requests[0].result() == requests[1].result()

    observer = threading.Thread(target=read)
    observer.start()
    users = [f"user {n}" for n in range(USERS)]
    with ThreadPoolExecutor(USERS) as everybody:
        list(everybody.map(vote, users))
    reading.set()
    observer.join()
    reader.close()
    assert seen == sorted(seen)
    votes = store.votes()
    assert len(votes) == USERS * VOTES
    for user in users:
        rng, own = random.Random(user), [v for v in votes if v.user == user]
        assert [v.choice for v in own] == [rng.choice(["a", "b", "tie"]) for _ in pairs]
        assert [list(v.pictures) for v in own] == pairs


def test_two_hands_on_one_showing(store):
    """Different requests for one showing at once: one is taken, the others are told."""
    shown = store.show("ann", pair(store))

    def vote(n):
        try:
            return store.vote(shown, "ann", "a", token=str(n))
        except Exception as error:
            return str(error)

    with ThreadPoolExecutor(8) as hands:
        told = list(hands.map(vote, range(8)))
    assert sum("answered already" in str(each) for each in told) == 7
    assert store.count() == 1


def test_undone_at_once_each_vote_is_undone_once(store):
    for n in range(8):
        voted(store, "ann", "a", pair(store, n))
    with ThreadPoolExecutor(12) as hands:
        undone = list(hands.map(lambda _: store.undo("ann"), range(12)))
    assert len({vote.id for vote in undone if vote}) == 8
    assert sum(vote is None for vote in undone) == 4
    assert store.count() == 0


def test_a_ranking_from_another_window_is_not_undone_for_a_pair(store):
    """Somebody ranks in one window while taking back pairs in another: in any order, the rankings stand."""
    pairs = [pair(store, n) for n in range(8)]
    for pictures in pairs:
        voted(store, "ann", "a", pictures)

    def rank(pictures):
        return store.vote(store.show("ann", pictures, "ranking"), "ann", [pictures[0]])

    with ThreadPoolExecutor(8) as hands:
        acts = [
            act
            for n, pictures in enumerate(pairs)
            for act in (hands.submit(rank, pictures), hands.submit(store.undo, "ann", "pair", token=f"u{n}"))
        ]
        done = [act.result() for act in acts]
    assert {vote.kind for vote in done[1::2]} == {"pair"}
    assert len({vote.id for vote in done[1::2]}) == 8
    assert {vote.id for vote in store.votes()} == {vote.id for vote in done[::2]}
