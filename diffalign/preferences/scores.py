"""How good models are, from votes between their pictures.

Bradley and Terry 1952: P(i beats j) = sigmoid(s_i - s_j). Dimensions: M models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffalign.preferences.vote import Vote

PRIOR = 3.0
"""Standard deviation of a score before any vote, in logits: it keeps a model that never lost finite."""
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Score:
    """A model's score in logits (mean 0 over the models) with its 95 % interval; ties are half a win."""

    model: str
    score: float
    low: float
    high: float
    wins: float
    games: int


def bradley_terry(votes: Iterable[Vote], prior: float = PRIOR) -> list[Score]:
    """Every model's score, best first, from all pairs of pictures of different models.

    The interval takes the pairs as independent. prior: standard deviation in logits; math.inf for
    none, which needs that every model has won and lost.
    """
    found = [(v.model_of(x), v.model_of(y), won) for v in votes for x, y, won in v.compared()]
    games = [(one, other, won) for one, other, won in found if one != other]
    models = sorted({model for one, other, _ in games for model in (one, other)})
    wins = np.zeros((len(models), len(models)))
    for one, other, won in games:
        i, j = models.index(one), models.index(other)
        wins[i, j] += won
        wins[j, i] += 1 - won
    scores, half = fit(wins, prior)
    rows = zip(models, scores, half, wins.sum(1), (wins + wins.T).sum(1), strict=True)
    table = [Score(m, float(s), float(s - h), float(s + h), float(w), round(n)) for m, s, h, w, n in rows]
    return sorted(table, key=lambda row: -row.score)


def by_user(votes: Iterable[Vote], prior: float = PRIOR) -> dict[str, list[Score]]:
    """Every user's own scores."""
    votes = list(votes)
    users = sorted({vote.user for vote in votes})
    return {user: bradley_terry([v for v in votes if v.user == user], prior) for user in users}


def fit(wins: NDArray[np.float64], prior: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(scores, half widths of their 95 % intervals), (M,) each, of wins (M, M): how often i beat j.

    Newton's method on the log posterior, a step no longer than 1 so that it cannot overshoot; the
    intervals are Laplace's.
    """
    count = len(wins)
    games, precision, scores = wins + wins.T, 0.0 if math.isinf(prior) else prior**-2, np.zeros(count)
    centre = np.eye(count) - 1 / max(count, 1)
    for _ in range(200):
        p = 1 / (1 + np.exp(scores[None] - scores[:, None]))
        weight = games * p * (1 - p)
        covariance = np.linalg.pinv(np.diag(weight.sum(1) + precision) - weight, hermitian=True)
        step = covariance @ ((wins - games * p).sum(1) - precision * scores)
        longest = float(np.abs(step).max(initial=0))
        if longest < 1e-10:
            break
        scores = centre @ (scores + step / max(1.0, longest))
    variance = np.diag(centre @ covariance @ centre) if count else scores
    return scores, NORMAL_95 * np.sqrt(variance)
