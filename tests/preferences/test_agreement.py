"""Krippendorff's alpha of published tables, and users who do not look at what they choose."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime

import pytest

from diffalign.preferences import Vote, agreement, suspicious
from diffalign.preferences.agreement import alpha

# Krippendorff 2011, section C: four observers, twelve units, nominal alpha = 0.743.
OBSERVERS = [
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
]


def test_alpha_is_that_of_the_published_table():
    units = zip(*(row.split() for row in OBSERVERS), strict=True)
    assert alpha([x for x in unit if x != "."] for unit in units) == pytest.approx(0.743, abs=0.0005)


def cast(user, n, better, rng, seconds=2.0):
    """A vote on the n-th pair, whose pictures are x and y, shown on random sides."""
    shown = rng.sample([f"{n}x", f"{n}y"], 2)
    choice = better if better in ("tie", "both_bad") else "ab"[shown.index(f"{n}{better}")]
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return Vote(0, 0, user, "p", "pair", tuple(shown), ("A", "B"), choice, seconds, when, "0")


def test_sides_do_not_matter():
    rng = random.Random(0)
    same = [cast(user, n, "xy"[n % 2], rng) for n in range(20) for user in ("ann", "bob")]
    assert agreement(same).alpha == 1
    opposite = [
        cast(user, n, better, rng) for n in range(20) for user, better in (("ann", "x"), ("bob", "y"))
    ]
    found = agreement(opposite)
    assert found.alpha == pytest.approx(-0.95)
    assert (found.pairs, found.users) == (20, 2)


def test_chance_is_zero_and_nobody_is_nothing():
    rng = random.Random(0)
    votes = [cast(user, n, rng.choice("xy"), rng) for n in range(500) for user in "abcd"]
    assert abs(agreement(votes).alpha) < 0.05
    assert math.isnan(agreement(votes[:1]).alpha)
    assert agreement(votes[:1]).pairs == 0


def crowd(rng, pairs=40, right=0.85, users=6):
    """Votes of people who mostly see the same, and what is right."""
    truth = [rng.choice("xy") for _ in range(pairs)]
    other = {"x": "y", "y": "x"}
    return truth, [
        cast(f"user {u}", n, best if rng.random() < right else other[best], rng)
        for u in range(users) for n, best in enumerate(truth)
    ]  # fmt: skip


def test_who_answers_at_random_is_named_with_the_reason():
    """In 30 crowds; where chance let Eve agree with the others by far, nothing can be said."""
    named = []
    for seed in range(30):
        rng = random.Random(seed)
        truth, votes = crowd(rng, pairs=80)
        found = suspicious(votes + [cast("eve", n, rng.choice("xy"), rng) for n in range(len(truth))])
        named += [found] if found else []
    assert len(named) >= 27
    for found in named:
        assert set(found) == {"eve"}
        assert "pairs, no more than by chance; others did in" in found["eve"][0]


def test_who_always_takes_one_side_is_named():
    rng = random.Random(2)
    votes = [cast("eve", n, rng.choice("xy"), rng) for n in range(60)]
    votes = [v for v in votes if v.choice == "a"] + [v for v in votes if v.choice == "b"][:1]
    (reason,) = suspicious(votes)["eve"]
    assert reason.startswith("chose the picture shown first in ")


def test_who_answers_before_looking_is_named():
    rng = random.Random(3)
    _, votes = crowd(rng, users=3)
    hasty = [cast("eve", n, rng.choice("xy"), rng, seconds=0.1) for n in range(100, 112)]
    assert suspicious(votes + hasty) == {
        "eve": ["answered in 0.1 s (median of 12), too fast to look at the pictures"]
    }


def test_another_taste_and_few_votes_are_no_reason():
    rng = random.Random(4)
    truth, votes = crowd(rng)
    opposite = [cast("ann", n, {"x": "y", "y": "x"}[best], rng) for n, best in enumerate(truth)]
    few = [cast("bob", n, rng.choice("xy"), rng) for n in range(5)]
    assert suspicious(votes + opposite + few) == {}


def test_honest_users_are_rarely_named():
    """A hundred crowds of six: no more named than the level, 1 % a test and crowd, allows."""
    named = sum(len(suspicious(crowd(random.Random(seed))[1])) for seed in range(100))
    assert named <= 5
