"""Vendi score: how many pictures a set is worth that has no two alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from diffalign.reward import DiffalignError, Reward
from diffalign_rewards._sets import PictureSet, Rows


class Vendi(PictureSet):
    """exp of the von Neumann entropy of K / N, K the cosines between N pictures (Friedman & Dieng 2023,
    arXiv:2210.02410, eq. 1).

    From 1, all alike, to N, all orthogonal. Order q weighs rare pictures less the larger it is (Pasarkar &
    Dieng 2023, arXiv:2310.12952); q = 1 is the entropy, q = .inf looks at the most common alone. encoder: any
    reward with `embed`. Differentiable where the encoder is.
    """

    name, fewest = "vendi", 1

    def __init__(self, encoder: Reward, q: float = 1.0) -> None:
        super().__init__(encoder)
        if not q > 0:
            raise DiffalignError(f"the order q of vendi is {q}; it must be above 0.")
        self.q = q

    def statistics(self, features: Tensor) -> Rows:
        """Unit features (N, E)."""
        return Rows(normalize(features, dim=1))

    def value(self, statistics: Rows) -> Tensor:
        """K / N and its dual, the features' second moment, have the same eigenvalues but for zeros."""
        x = statistics.features
        smaller = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
        return effective_number(torch.linalg.eigvalsh(smaller / len(x)), self.q)


def effective_number(shares: Tensor, q: float) -> Tensor:
    """Hill number of order q of shares (N,) that sum to 1: exp of their Renyi entropy."""
    shares = shares[shares > 1e-12]  # zeros but for rounding, where the entropy has no slope
    if q == 1:
        entropy: Tensor = torch.special.entr(shares).sum()
        return entropy.exp()
    if q == float("inf"):
        return 1 / shares.max()
    return shares.pow(q).sum().pow(1 / (1 - q))
