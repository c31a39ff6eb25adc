"""Diffusion Tree Sampling (DTS) and Search (DTS*): rollouts that start where earlier ones went well.

Jain et al. 2025 (arXiv 2506.20701), algorithm 1. Dimensions: P prompts, B rollouts of one round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from diffalign.bounds import Above0, Decay, NotNegative, Positive, Share
from diffalign.errors import DiffalignError
from diffalign.grid import Grid
from diffalign.search import Found, Search, Task
from diffalign.searching.tree import Tree
from diffalign.steps import stochastic

REVISITS = 1000
"""After so many visits of finished leaves in a row, the node above one grows whatever `branching` says."""


@dataclass
class DTS(Search):
    """A tree for each prompt; every rollout adds one path to it, and its reward to the values above.

    rollouts: of each prompt; a finished tree can be gone on with by a method with more of them.
    mode: "sample" chooses children by exp(lam value), and the tree's leaves sample p exp(lam r);
    "search" chooses the best value + c_uct sqrt(log visits / child's visits).
    lam: nats per unit of reward, see FK; infinity takes the largest value for a node's.
    c_uct: in units of the reward, about its standard deviation among samples of one prompt.
    branches: where the tree branches below the initial noise, in shares of the run's steps. What the
    noise leaves open is decided early in most models: later branches are cheap, and differ little.
    branching, growth: a node that n rollouts went through has up to branching * n ** growth children; published is
    branching 2, which samples better from large trees and searches worse with small ones.
    The published 2 and 0.8 are for thousands of rollouts, and are best-of-n in the first 32.
    parallel: rollouts of each prompt that are computed at once, each without knowing the others' rewards.
    """

    rollouts: Positive = 32
    mode: Literal["sample", "search"] = "search"
    lam: NotNegative = 10.0
    c_uct: NotNegative = 0.1
    branches: tuple[Decay, ...] = (0.2, 0.4, 0.6)
    branching: Above0 = 1.0
    growth: Share = 0.8
    parallel: Positive = 1

    def levels(self, grid: Grid) -> list[int]:
        """The levels of the tree's depths 1, 2, ...: the noise, where it branches, the finished sample."""
        return sorted({0, *self._branches(grid), grid.steps})

    def _branches(self, grid: Grid) -> set[int]:
        return {round(share * grid.steps) for share in self.branches} - {grid.steps}

    def check(self, task: Task) -> None:
        """Rounds are whole, so that stopping changes nothing; branches need noise to part."""
        if self.rollouts % self.parallel:
            raise DiffalignError(
                f"rollouts = {self.rollouts} is no multiple of parallel = {self.parallel}; a tree is stopped, and "
                "gone on with, after whole rounds."
            )
        grid, levels = task.policy.grid, self.levels(task.policy.grid)
        noisy = set(stochastic(task.rule, grid).tolist())
        for level, below in pairwise(levels):
            if level in self._branches(grid) and not noisy.intersection(range(level, below)):
                raise DiffalignError(
                    f"a tree that branches at level {level} needs noise in the steps to level {below}, and {task.rule} "
                    "has none there. Use rule 'ddim' with eta above 0 (diffusion) or 'flow_sde' with noise_level "
                    "above 0 (flow), or `branches` without this share."
                )

    def search(self, task: Task) -> Found:
        """See Search; the extras hold each prompt's tree, its nodes in plain numbers and its leaves' latents."""
        return self.grow(task, [Tree(prompt, self.levels(task.policy.grid)) for prompt in task.prompts])

    def grow(self, task: Task, trees: Sequence[Tree]) -> Found:
        """Go on with trees, loaded ones too, until each has `rollouts` leaves."""
        for _ in self.rounds(task, trees):
            pass
        return task.found([_extras(tree) for tree in trees])

    def rounds(self, task: Task, trees: Sequence[Tree]) -> Iterator[None]:
        """The same in rounds of `parallel` rollouts; whoever takes them may stop after any."""
        for p, tree in enumerate(trees):
            self._take_up(task, p, tree)
        while growing := [p for p, tree in enumerate(trees) if len(tree) < self.rollouts]:
            started = [self._start(task, p, trees[p], n) for p in growing for n in range(self.parallel)]
            scores = _finish(task, started)
            for k, rollout in enumerate(started):
                own = {name: float(values[k]) for name, values in scores.items()}
                rollout.tree.finish(rollout.path[-1], own, task.ledger.of(rollout.owner))
            for rollout in started:
                rollout.tree.backup(rollout.path[-1], self.lam)
            yield

    def _take_up(self, task: Task, p: int, tree: Tree) -> None:
        """Bring a new task to where it was when a tree was kept."""
        expected = task.prompts[p], self.levels(task.policy.grid)
        if (tree.prompt, tree.levels) != expected:
            raise DiffalignError(
                f"this tree is of the prompt {tree.prompt!r} and has levels {tree.levels}; here are {expected[0]!r} "
                f"and {expected[1]}. Give each prompt its own tree, and the steps and branches it began with."
            )
        if task.best.paths[p]:
            return
        for leaf, scores, cost in zip(tree.leaves, tree.scores, tree.costs, strict=True):
            latents, noise = (
                part.to(task.policy.device) for part in (tree.latents_of(leaf), tree.noise_of(leaf))
            )
            task.best.offer(p, latents, noise, scores, cost)
            task.ledger.restore(p, cost)
            tree.backup(leaf, self.lam)

    def _start(self, task: Task, p: int, tree: Tree, ahead: int) -> Rollout:
        """A rollout from a new child of the node that the tree's values lead to."""
        for _ in range(REVISITS):
            node = self._select(task, p, tree)
            if not tree.is_leaf(node):
                break
            tree.visit(node)
        start = tree.parent[node] if tree.is_leaf(node) else node
        return Rollout(p, tree, len(tree) + ahead, tree.expand(start))

    def _select(self, task: Task, p: int, tree: Tree) -> int:
        """Down from the top, past nodes that have all the children they may have."""
        visit = torch.tensor([tree.visits[0]])
        dice = torch.Generator().manual_seed(task.seeds("select", torch.tensor([p]), visit)[0])
        node, branches = 0, self._branches(task.policy.grid)
        while tree.known(node) and len(tree.children[node]) >= self._room(tree, node, branches):
            node = self._choose(tree, node, dice)
        return node

    def _room(self, tree: Tree, node: int, branches: set[int]) -> float:
        """How many children a node may have by now."""
        if node and tree.levels[tree.depth[node] - 1] not in branches:
            return 1
        return self.branching * math.pow(tree.visits[node], self.growth)

    def _choose(self, tree: Tree, node: int, dice: torch.Generator) -> int:
        if self.mode == "sample":
            return tree.boltzmann(node, self.lam, dice)
        explored = math.log(tree.visits[node])

        def bound(child: int) -> float:
            return tree.value[child] + self.c_uct * math.sqrt(explored / tree.visits[child])

        return max(tree.known(node), key=bound)


@dataclass(frozen=True)
class Rollout:
    """The way from a node down to a new leaf: `path` are its new nodes, `number` its place among rollouts."""

    owner: int
    tree: Tree
    number: int
    path: list[int]

    def begin(self, noise: Tensor) -> tuple[Tensor, int]:
        """The latents it starts with and their level: new noise (...) at the top of the tree."""
        above = self.tree.parent[self.path[0]]
        if above == 0:
            return noise, 0
        return self.tree.latents_of(above).to(noise.device), self.tree.levels[self.tree.depth[above] - 1]

    def keep(self, latents: Tensor, level: int) -> None:
        """Give the new node at this level, if there is one, its latents."""
        for node in self.path:
            if self.tree.levels[self.tree.depth[node] - 1] == level:
                self.tree.latents[node] = latents.detach().to("cpu", copy=True)


def _finish(task: Task, started: Sequence[Rollout]) -> dict[str, Tensor]:
    """Denoise rollouts, which stand at different levels, in common batches; score and offer them."""
    owner, number = (torch.tensor([getattr(r, name) for r in started]) for name in ("owner", "number"))
    seeds, noise = task.seeds("steps", owner, number), task.noise(owner, number)
    begun = [rollout.begin(own) for rollout, own in zip(started, noise, strict=True)]
    x, level = torch.stack([latents for latents, _ in begun]), torch.tensor([at for _, at in begun])
    _keep(started, x, level)
    while len(rows := (level < task.policy.grid.steps).nonzero().flatten()):
        own = rows.to(x.device)
        x[own] = task.advance(x[own], level[rows], owner[rows], [seeds[r] for r in rows.tolist()]).next
        level[rows] += 1
        _keep(started, x, level)
    scores = task.score(x, owner)
    noise = torch.stack([r.tree.noise_of(r.path[-1]) for r in started])
    task.offer(owner, x, noise.to(x.device), scores)
    return scores


def _keep(started: Sequence[Rollout], x: Tensor, level: Tensor) -> None:
    for k, rollout in enumerate(started):
        rollout.keep(x[k], int(level[k]))


def _extras(tree: Tree) -> dict[str, Any]:
    return {
        "tree": tree,
        "nodes": tree.drawing(),
        "pictures": torch.stack([tree.latents_of(leaf) for leaf in tree.leaves]),
        "likeliest": tree.leaves.index(tree.likeliest()),
    }
