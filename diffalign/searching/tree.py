"""A prompt's search tree: noise at the top, finished samples at the bottom, what they are worth in between.

Jain et al. 2025 (arXiv 2506.20701). Node 0 stands above all noise; the children of a node are samples of what
the denoising makes of it. Dimensions: L leaves, which are the finished samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.folders import checkpoint
from diffalign.searching.ledger import Cost
from diffalign.seeds import generator


@dataclass
class Tree:
    """One prompt's tree over the noise levels (indices of the grid) of its depths 1, 2, ... .

    By node: parent, children, depth (0 is the top), visits (rollouts through it), value (of the reward,
    nan until the node's first rollout is finished) and latents (None until they are computed). By leaf,
    in the order of their rollouts: node, scores, and what the prompt had cost.
    """

    prompt: str
    levels: list[int]
    parent: list[int] = field(default_factory=lambda: [-1])
    depth: list[int] = field(default_factory=lambda: [0])
    visits: list[int] = field(default_factory=lambda: [0])
    value: list[float] = field(default_factory=lambda: [math.nan])
    latents: list[Tensor | None] = field(default_factory=lambda: [None])
    leaves: list[int] = field(default_factory=list)
    scores: list[dict[str, float]] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    children: list[list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.children = [[] for _ in self.parent]
        for node, parent in enumerate(self.parent[1:], start=1):
            self.children[parent].append(node)

    def __len__(self) -> int:
        return len(self.leaves)

    # -- growing --------------------------------------------------------------------------------

    def known(self, node: int) -> list[int]:
        """The children whose value is known."""
        return [child for child in self.children[node] if not math.isnan(self.value[child])]

    def is_leaf(self, node: int) -> bool:
        """Whether a node is a finished sample."""
        return self.depth[node] == len(self.levels)

    def path(self, node: int) -> list[int]:
        """The nodes from a node up to node 0."""
        return [node] if node == 0 else [node, *self.path(self.parent[node])]

    def visit(self, node: int) -> None:
        """One more visit of a node and all above it."""
        for above in self.path(node):
            self.visits[above] += 1

    def expand(self, node: int) -> list[int]:
        """New nodes from below a node down to a new leaf, with latents and values to come."""
        new = range(len(self.parent), len(self.parent) + len(self.levels) - self.depth[node])
        for number in new:
            parent = node if number == new.start else number - 1
            self.parent.append(parent)
            self.children[parent].append(number)
            self.children.append([])
            self.depth.append(self.depth[parent] + 1)
            self.visits.append(0)
            self.value.append(math.nan)
            self.latents.append(None)
        self.visit(new[-1])
        return list(new)

    def finish(self, leaf: int, scores: dict[str, float], cost: Cost) -> None:
        """A leaf's scores; `backup` then tells the nodes above."""
        self.leaves.append(leaf)
        self.scores.append(scores)
        self.costs.append(cost)
        self.value[leaf] = scores["total"]

    def backup(self, leaf: int, lam: float) -> None:
        """The soft Bellman backup: every node above a leaf is worth the soft mean of its children."""
        for node in self.path(leaf)[1:]:
            self.value[node] = soft_mean([self.value[child] for child in self.known(node)], lam)

    # -- using ----------------------------------------------------------------------------------

    def sample(self, count: int, lam: float, seed: int = 0) -> list[int]:
        """Leaves drawn by their values from the top down: a sample of p exp(lam r), without a network."""
        dice = generator(seed, "tree", self.prompt)
        return [self._descend(lam, dice) for _ in range(count)]

    def likeliest(self) -> int:
        """The leaf below the best child, of its best child, and so on."""
        return self._descend(math.inf, torch.Generator())

    def _descend(self, lam: float, dice: torch.Generator) -> int:
        node = 0
        while not self.is_leaf(node):
            node = self.boltzmann(node, lam, dice)
        return node

    def boltzmann(self, node: int, lam: float, dice: torch.Generator) -> int:
        """One of the known children, with probability proportional to exp(lam value); infinity: the best."""
        among = self.known(node)
        values = torch.tensor([self.value[child] for child in among], dtype=torch.float64)
        if lam == math.inf:
            return among[int(values.argmax())]
        alive = values > -math.inf
        logits = (lam * values).where(alive, -math.inf) if bool(alive.any()) else torch.zeros(len(among))
        return among[int(torch.multinomial(logits.double().softmax(0), 1, generator=dice))]

    def noise_of(self, leaf: int) -> Tensor:
        """The initial latents of a leaf."""
        return self.latents_of(self.path(leaf)[-2])

    def latents_of(self, node: int) -> Tensor:
        """The latents of a node; its rollout must be finished."""
        latents = self.latents[node]
        assert latents is not None
        return latents

    def drawing(self) -> list[dict[str, Any]]:
        """Every node in plain numbers, for a page; `picture` is a leaf's place among the leaves."""
        place = {leaf: number for number, leaf in enumerate(self.leaves)}
        return [
            {
                "parent": self.parent[node],
                "depth": self.depth[node],
                "level": self.levels[self.depth[node] - 1] if node else None,
                "value": self.value[node] if math.isfinite(self.value[node]) else None,
                "visits": self.visits[node],
                "picture": place.get(node),
            }
            for node in range(len(self.parent))
        ]

    # -- keeping --------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the tree: numbers in JSON, latents in safetensors."""
        lists = {name: getattr(self, name) for name in PLAIN}
        latents = torch.stack([self.latents_of(node) for node in range(1, len(self.parent))])
        costs = [asdict(cost) for cost in self.costs]
        checkpoint.save(Path(folder), {**lists, "costs": costs, "latents": latents})

    @classmethod
    def load(cls, folder: str | Path) -> Tree:
        """What `save` wrote."""
        state = checkpoint.load(Path(folder))
        missing = {*PLAIN, "costs", "latents"} - state.keys()
        if missing:
            raise DiffalignError(f"{folder} holds no tree: it lacks {', '.join(sorted(missing))}.")
        return cls(
            **{name: state[name] for name in PLAIN},
            costs=[Cost(**cost) for cost in state["costs"]],
            latents=[None, *state["latents"]],
        )


PLAIN = ("prompt", "levels", "parent", "depth", "visits", "value", "leaves", "scores")


def soft_mean(values: Sequence[float], lam: float) -> float:
    """(1 / lam) log mean exp(lam value): the mean at lam 0, the largest at infinity."""
    v = torch.tensor(values, dtype=torch.float64)
    if lam == math.inf or bool((v == -math.inf).all()):
        return float(v.max())
    if lam == 0:
        return float(v[v > -math.inf].mean())
    return float((lam * v).logsumexp(0) - math.log(len(v))) / lam
