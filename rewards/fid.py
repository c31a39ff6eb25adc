"""Minus the Fréchet distance between a set of pictures and reference pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from diffalign_rewards._sets import ComparedSet, Moments


class Fid(ComparedSet):
    """-(|m - r|² + tr(C + R - 2 (C R)^½)) of means and covariances of features (FID, Heusel et al. 2017,
    arXiv:1706.08500, eq. 6); the minus makes higher better, and 0 is best.

    In float64. Numbers depend on the encoder, any reward with `embed`, so they compare only among runs with
    the same one; and fewer pictures score lower (Chong & Forsyth 2020, arXiv:1911.07023): compare equally
    many, or use kid. Differentiable where the encoder is. torchmetrics' FID, with which the tests agree, has
    no gradient and wants its encoder in a Module.
    """

    name, keeps = "fid", Moments

    def statistics(self, features: Tensor) -> Moments:
        """Count, sum and sum of outer products."""
        return Moments.of(features)

    def value(self, statistics: Moments) -> Tensor:
        """Minus the distance of these moments to those of the reference."""
        return -frechet(statistics, self.reference(statistics.total.device))


def frechet(ours: Moments, reference: Moments) -> Tensor:
    """Squared Fréchet distance () between Gaussians; with a gradient to the first.

    (C R)^½ has the eigenvalues of (LᵀCL)^½ with LLᵀ = R, which is symmetric.
    """
    c, r = ours.covariance, reference.covariance
    root = _root(r)
    shared: Tensor = torch.linalg.eigvalsh(root.T @ c @ root)
    shared = shared[
        shared > shared.max() * len(r) * torch.finfo(shared.dtype).eps
    ]  # the root of 0 has no slope
    apart = (ours.mean - reference.mean).square().sum()
    return apart + c.trace() + r.trace() - 2 * shared.sqrt().sum()


def _root(matrix: Tensor) -> Tensor:
    """L (E, E) with L Lᵀ = matrix, which is symmetric and without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.clamp_min(0).sqrt()
    return root
