"""Minus the kernel distance between a set of pictures and reference pictures, unbiased for few pictures too."""

from __future__ import annotations

import torch
from torch import Tensor

from diffalign.reward import DiffalignError, Reward
from diffalign_rewards._sets import ComparedSet, Rows

AT_ONCE = 2048
"""Rows of a kernel matrix that are held in memory."""


class Kid(ComparedSet):
    """-MMD² with the kernel (gamma x·y + 1)³, the unbiased estimate (KID, Binkowski et al. 2018,
    arXiv:1801.01401); the minus makes higher better. About 0 for pictures like the reference, and a little
    above or below it by chance.

    gamma: 1 suits unit features, as encoders here give; null is the paper's 1 / E, for features whose elements
    are about 1 in size. By default all pictures are compared at once; subset_size: the mean over `subsets`
    random subsets of that size of both sides, as the literature reports it (the paper's are 100 of 1000).
    Differentiable where the encoder is. torchmetrics' KID, with which the tests agree, has no gradient, and
    takes subsets of equal size only.
    """

    name, keeps = "kid", Rows

    def __init__(
        self,
        encoder: Reward,
        reference: str,
        gamma: float | None = 1.0,
        subset_size: int | None = None,
        subsets: int = 100,
    ) -> None:
        super().__init__(encoder, reference)
        if subsets < 1 or (subset_size is not None and subset_size < 2):
            raise DiffalignError(
                f"kid takes at least 1 subset of at least 2 pictures; these are {subsets} of {subset_size}."
            )
        self.gamma, self.subset_size, self.subsets = gamma, subset_size, subsets

    def statistics(self, features: Tensor) -> Rows:
        """The features: the kernel's own feature space has E³ dimensions."""
        return Rows(features)

    def value(self, statistics: Rows) -> Tensor:
        """Minus the distance of these features to those of the reference."""
        x, y = statistics.features, self.reference(statistics.features.device).features
        gamma = 1 / x.shape[1] if self.gamma is None else self.gamma
        size = self.subset_size
        fewest = min(len(x), len(y))
        if fewest < (size or 2):
            raise DiffalignError(
                f"kid compares {size or 'at least 2'} pictures a side, and there are {len(x)} and {len(y)} "
                "reference pictures; give more of them, or a smaller subset_size."
            )
        if size is None:
            return -mmd2(x, y, gamma)
        draw = torch.Generator().manual_seed(0)
        some = [[torch.randperm(len(z), generator=draw)[:size] for z in (x, y)] for _ in range(self.subsets)]
        return -torch.stack([mmd2(x[i.to(x.device)], y[j.to(y.device)], gamma) for i, j in some]).mean()


def mmd2(x: Tensor, y: Tensor, gamma: float) -> Tensor:
    """Unbiased squared maximum mean discrepancy () of features (M, E) and (N, E) (Gretton et al. 2012, eq. 3)."""
    return _within(x, gamma) + _within(y, gamma) - 2 * _sum(x, y, gamma) / (len(x) * len(y))


def _within(x: Tensor, gamma: float) -> Tensor:
    """The mean kernel of two different rows."""
    itself = (gamma * x.square().sum(1) + 1).pow(3).sum()
    return (_sum(x, x, gamma) - itself) / (len(x) * (len(x) - 1))


def _sum(x: Tensor, y: Tensor, gamma: float) -> Tensor:
    return torch.stack([(gamma * some @ y.T + 1).pow(3).sum() for some in torch.split(x, AT_ONCE)]).sum()
