"""Bradley-Terry scores are those of closed forms and of an independent optimiser, and their intervals cover."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from diffalign.preferences import Vote, bradley_terry, by_user
from diffalign.preferences.scores import fit


def vote(winner, loser, choice="a", user="ann"):
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return Vote(0, 0, user, "p", "pair", ("x", "y"), (winner, loser), choice, None, when, "0")


def drawn(rng, truth, each):
    """Wins (M, M) in `each` games of every two models with these scores."""
    wins = np.zeros((len(truth), len(truth)))
    for i, j in combinations(range(len(truth)), 2):
        wins[i, j] = rng.binomial(each, expit(truth[i] - truth[j]))
        wins[j, i] = each - wins[i, j]
    return wins


@pytest.mark.parametrize(("won", "lost", "ties"), [(30, 10, 0), (30, 10, 8), (7, 7, 0)])
def test_two_models_have_a_closed_form(won, lost, ties):
    votes = [vote("A", "B")] * won + [vote("A", "B", "b")] * lost + [vote("A", "B", "tie")] * ties
    table = {row.model: row for row in bradley_terry(votes, prior=math.inf)}
    w, n = won + ties / 2, won + lost + ties
    gap = table["A"].score - table["B"].score
    assert gap == pytest.approx(math.log(w / (n - w)), abs=1e-8)
    half = 1.959964 * math.sqrt(1 / w + 1 / (n - w)) / 2
    assert table["A"].high - table["A"].score == pytest.approx(half, rel=1e-6)
    assert (table["A"].wins, table["A"].games) == (w, n)


def test_the_prior_hardly_moves_what_votes_say():
    votes = [vote("A", "B")] * 30 + [vote("A", "B", "b")] * 10
    best, last = bradley_terry(votes)
    assert best.score - last.score == pytest.approx(math.log(3), rel=0.02)


def test_more_models_are_where_an_independent_optimiser_finds_them():
    wins = drawn(np.random.default_rng(0), np.array([1.5, 0.3, 0.0, -1.8]), 25)

    def loss(s):
        return -(wins * log_expit(s[:, None] - s[None])).sum() + (s**2).sum() / (2 * 3.0**2)

    expected = minimize(loss, np.zeros(4), tol=1e-12).x
    np.testing.assert_allclose(fit(wins, 3.0)[0], expected, atol=1e-5)


def test_a_model_that_never_lost_stays_finite():
    one, other = bradley_terry([vote("A", "B")] * 20)
    assert one.model == "A"
    assert 2 < one.score - other.score < 12
    assert one.low > other.low
    assert all(math.isfinite(x) for row in (one, other) for x in (row.low, row.high))


def test_models_that_never_met_are_as_good_as_unknown():
    table = {r.model: r for r in bradley_terry([vote("A", "B"), vote("A", "B", "b"), vote("C", "D")] * 40)}
    assert table["C"].score > table["A"].score > table["D"].score
    assert table["A"].high - table["A"].low > 2


def test_intervals_cover_the_truth():
    """Of 95 % intervals of 4 models in 300 worlds, 95 % hold the truth; a binomial bound on the rest."""
    rng, truth = np.random.default_rng(1), np.array([0.9, 0.2, -0.3, -0.8])
    held = []
    for _ in range(300):
        scores, half = fit(drawn(rng, truth, 30), math.inf)
        held.append(np.abs(scores - truth) <= half)
    assert 0.93 <= np.mean(held) <= 0.97


def test_rankings_and_users_count():
    ranked = Vote(0, 0, "bob", "p", "ranking", ("x", "y", "z"), ("A", "B", "C"), ["z", "x", "y"], 1.0,
                  datetime(2026, 1, 1, tzinfo=UTC), "0")  # fmt: skip
    tables = by_user([ranked, vote("A", "C")])
    assert [row.model for row in tables["bob"]] == ["C", "A", "B"]
    assert [row.model for row in tables["ann"]] == ["A", "C"]
    assert [row.games for row in tables["bob"]] == [2, 2, 2]


def test_a_model_against_itself_says_nothing():
    assert bradley_terry([vote("A", "A")]) == []
    assert bradley_terry([]) == []
