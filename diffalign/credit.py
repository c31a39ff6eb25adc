"""From rewards to learning signals: advantages, win rates, pairs, best and worst.

Dimensions: B samples, G samples of one group. `group` (B,) names each sample's group (its prompt).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor


def groups(group: Tensor) -> Iterator[Tensor]:
    """Row indices of every group, in order of first appearance."""
    for name in dict.fromkeys(group.tolist()):
        yield (group == name).nonzero().flatten()


def pairs(group: Tensor) -> Tensor:
    """All unordered pairs of rows of one group, (P, 2) with the earlier row first."""
    found = [pair for rows in groups(group) for pair in combinations(rows.tolist(), 2)]
    return torch.tensor(found, dtype=torch.long).reshape(-1, 2)


def prefer(values: Tensor, first: Tensor, second: Tensor, labels: str, generator: torch.Generator) -> Tensor:
    """1 where row `first` is preferred to row `second`, -1 where the other is, 0 for a tie; like `first`.

    values (B, R): a row wins if it is nowhere lower and somewhere higher (R > 1: Pareto dominance).
    labels "hard" takes that; "bradley_terry" draws with P = sigmoid(difference of the summed values).
    """
    gap = values[first] - values[second]
    if labels == "bradley_terry":
        p = gap.sum(-1).sigmoid()
        return torch.bernoulli(p, generator=generator) * 2 - 1
    wins = (gap >= 0).all(-1) & (gap > 0).any(-1)
    loses = (gap <= 0).all(-1) & (gap < 0).any(-1)
    return wins.float() - loses.float()


def standardize(reward: Tensor, eps: float = 1e-8) -> Tensor:
    """(reward - mean) / (std + eps) over the whole batch (B,)."""
    return (reward - reward.mean()) / (reward.std(correction=0) + eps)


def leave_one_out(reward: Tensor, group: Tensor) -> Tensor:
    """Reward minus the mean of the others of its group (RLOO, Ahmadian et al. 2024), (B,)."""
    out = torch.zeros_like(reward)
    for rows in groups(group):
        n = len(rows)
        out[rows] = (reward[rows] - reward[rows].mean()) * n / max(n - 1, 1)
    return out


def win_rates(reward: Tensor, group: Tensor) -> Tensor:
    """Share of the others of its group that a sample beats, ties counting half, (B,)."""
    out = torch.full_like(reward, 0.5)
    for rows in groups(group):
        own = reward[rows]
        beats = (own[:, None] > own).float() + 0.5 * (own[:, None] == own).float()
        if len(rows) > 1:
            out[rows] = (beats.sum(1) - 0.5) / (len(rows) - 1)
    return out


def extremes(reward: Tensor, group: Tensor, keep: int) -> Tensor:
    """Rows of the `keep` best and the `keep` worst samples of every group, in their old order.

    With K samples each, one best and one worst pair differ far more in reward than two at random do
    (2.8 against 1.1 standard deviations for K = 8), at the cost of two trained samples.
    """
    chosen = []
    for rows in groups(group):
        order = rows[reward[rows].argsort(stable=True)]
        chosen.append(order if len(order) <= 2 * keep else torch.cat([order[:keep], order[-keep:]]))
    return torch.cat(chosen).sort().values


class PromptTracker:
    """Standardises rewards by a prompt's own recent rewards (DDPO, Black et al. 2024, appendix D.3).

    Keeps the last `buffer` rewards of each prompt; below `minimum` of them the batch's mean and
    standard deviation are used.
    """

    def __init__(self, buffer: int, minimum: int) -> None:
        self.buffer, self.minimum = buffer, minimum
        self.seen: dict[str, deque[float]] = {}

    def __call__(self, prompts: list[str], reward: Tensor, eps: float = 1e-6) -> Tensor:
        """Advantages (B,) of rewards (B,), remembering them."""
        for prompt, value in zip(prompts, reward.tolist(), strict=True):
            self.seen.setdefault(prompt, deque(maxlen=self.buffer)).append(value)
        mean, std = zip(*(self._statistics(prompt, reward) for prompt in prompts), strict=True)
        return (reward - reward.new_tensor(mean)) / (reward.new_tensor(std) + eps)

    def _statistics(self, prompt: str, reward: Tensor) -> tuple[float, float]:
        own = self.seen[prompt]
        values = torch.tensor(own) if len(own) >= self.minimum else reward
        return float(values.mean()), float(values.std(correction=0))

    def state_dict(self) -> dict[str, list[float]]:
        """The remembered rewards of every prompt."""
        return {prompt: list(values) for prompt, values in self.seen.items()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Take over what `state_dict` gave."""
        self.seen = {prompt: deque(values, maxlen=self.buffer) for prompt, values in state.items()}
