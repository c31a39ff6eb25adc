"""Pure functions of tensors: the losses of the likelihood-based algorithms.

Dimensions: M transitions, G samples of one group (prompt), N steps. Log-probs are in nats unless a
name ends in _mean (nats per dimension of the latent).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def policy_gradient(log_prob: Tensor, old: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """PPO's clipped surrogate, max(-A R, -A clip(R, 1 - c, 1 + c)), elementwise (M,).

    DDPO-IS (Black et al. 2024, section 4.3): R = exp(log_prob - old) with log-probs *per dimension*.
    """
    ratio = (log_prob - old).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return (-advantage * ratio).maximum(-advantage * clipped)


def preference(first: Tensor, second: Tensor, sign: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta * sign * (first - second)), elementwise; sign 1, -1, or 0 for a tie.

    D3PO (Yang et al. 2024, eq. 15) with first, second the log ratios to the reference of a pair.
    """
    return -logsigmoid(beta * sign * (first - second))


def clip_ratio(log_ratio: Tensor, clip: float) -> Tensor:
    """log clip(exp(log_ratio), 1 - clip, 1 + clip): the bound on Q in D3PO's published code."""
    return log_ratio.exp().clamp(1 - clip, 1 + clip).log()


def reward_difference(
    log_ratio: Tensor, clipped: Tensor, reward: Tensor, beta: float, pairs: Tensor
) -> Tensor:
    """PRDP (Deng et al. 2024, eq. 15 and 20): mean over pairs of max(l, l_clip).

    log_ratio and clipped (G,) are the trajectories' summed log ratios to the reference, reward (G,),
    pairs (P, 2) indexes them; l = (log_ratio_a - log_ratio_b - (reward_a - reward_b) / beta)^2.
    """
    a, b = pairs.unbind(1)
    target = (reward[a] - reward[b]) / beta
    plain = (log_ratio[a] - log_ratio[b] - target).square()
    bounded = (clipped[a] - clipped[b] - target).square()
    return plain.maximum(bounded).mean()
