"""What a search found for each prompt, how the best reward rose, and what that cost.

Dimensions: P prompts, B samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffalign.searching.ledger import Cost


@dataclass(frozen=True)
class Mark:
    """The best total reward of a prompt when it had cost this much."""

    cost: Cost
    best: float


@dataclass
class Found:
    """The best sample of every prompt, and the one the search began with.

    latents and first_latents (P, ...) are finished samples, noise (P, ...) the initial latents of the
    best one; scores and first_scores hold "total" and every reward, (P,) each; paths: one list of
    marks a prompt; extras: what a method has to show beside that, such as trees, one a prompt.
    """

    prompts: list[str]
    latents: Tensor
    noise: Tensor
    scores: dict[str, Tensor]
    first_latents: Tensor
    first_scores: dict[str, Tensor]
    paths: list[list[Mark]]
    costs: list[Cost]
    extras: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def total(self) -> Tensor:
        """The reward that was searched for, (P,)."""
        return self.scores["total"]


class Best:
    """The best sample that each of P prompts was offered, the first one, and the path in between."""

    def __init__(self, prompts: Sequence[str]) -> None:
        self.prompts = list(prompts)
        self.best: list[dict[str, Any]] = [{} for _ in prompts]
        self.first: list[dict[str, Any]] = [{} for _ in prompts]
        self.paths: list[list[Mark]] = [[] for _ in prompts]

    def offer(
        self, owner: int, latents: Tensor, noise: Tensor, scores: Mapping[str, float], cost: Cost
    ) -> None:
        """Offer one sample (...) to its prompt, which keeps it where it is the best so far."""
        offered = {"latents": latents.detach(), "noise": noise.detach(), "scores": dict(scores)}
        better = not self.best[owner] or scores["total"] > self.total(owner)
        self.first[owner] = self.first[owner] or offered
        self.best[owner] = offered if better else self.best[owner]
        self.paths[owner].append(Mark(cost, self.total(owner)))

    def total(self, owner: int) -> float:
        """The best total reward of a prompt."""
        return float(self.best[owner]["scores"]["total"])

    def found(self, costs: Sequence[Cost], extras: Sequence[dict[str, Any]] = ()) -> Found:
        """What was found for all prompts."""
        return Found(
            prompts=self.prompts,
            latents=_stacked(self.best, "latents"),
            noise=_stacked(self.best, "noise"),
            scores=_columns(self.best),
            first_latents=_stacked(self.first, "latents"),
            first_scores=_columns(self.first),
            paths=self.paths,
            costs=list(costs),
            extras=list(extras) or [{} for _ in self.prompts],
        )


def _stacked(rows: Sequence[Mapping[str, Any]], key: str) -> Tensor:
    return torch.stack([row[key] for row in rows])


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.tensor([row["scores"][name] for row in rows]) for name in rows[0]["scores"]}
