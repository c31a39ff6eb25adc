"""Where the samples are in a tree of arguments: learnt by comparing what different batches are made into.

Dimensions: B samples, m blocks of B rows along a leaf's first axis (2 where guidance doubles the batch), L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffalign.errors import DiffalignError


class Slot(int):
    """The number of a leaf, in a skeleton."""


@dataclass(frozen=True)
class Leaf:
    """Where the samples are in one leaf of a tree.

    rows: a tensor (m·B, ...); items: a list of m·B things; shared: the same for all samples; absent:
    None, and nothing is known of what else it could be. Leaves of different length L are padded with
    `pad` on `side`; a `mask_of` leaf is a mask over the tokens of that other leaf, and is None while
    nothing is padded.
    """

    kind: Literal["rows", "items", "shared", "absent"]
    blocks: int = 1
    side: Literal["right", "left"] | None = None
    pad: float = 0.0
    mask_of: int | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Layout:
    """A tree's containers, with the number of a leaf wherever a leaf was, and what each leaf is."""

    skeleton: Any
    leaves: tuple[Leaf, ...]

    def flatten(self, tree: Any) -> list[Any]:
        """The leaves of a tree of this shape, in order."""
        found: dict[int, Any] = {}
        _walk(self.skeleton, tree, found)
        return [found[n] for n in range(len(self.leaves))]

    def build(self, values: Sequence[Any]) -> Any:
        """The tree with these leaves."""
        return _build(self.skeleton, values)


def learn(small: Any, large: Any, sizes: tuple[int, int]) -> Layout:
    """The layout of two trees that a pipeline made for `sizes` = (b, B) prompts, b < B.

    What is 1/b-th as long with b as with B is split between samples; what only happens to have that
    length in one of them is not.
    """
    leaves: list[Leaf] = []
    skeleton = _learn(small, large, sizes, leaves)
    return Layout(skeleton, tuple(leaves))


def _learn(small: Any, large: Any, sizes: tuple[int, int], leaves: list[Leaf]) -> Any:
    def slot(leaf: Leaf) -> Slot:
        leaves.append(leaf)
        return Slot(len(leaves) - 1)

    b, total = sizes
    if small is None and large is None:
        return slot(Leaf("absent"))
    if isinstance(large, Tensor) and small is None:
        return slot(
            Leaf("rows", large.shape[0] // total, "right", 0.0, -1, str(large.dtype).removeprefix("torch."))
        )
    if isinstance(large, Tensor) and isinstance(small, Tensor):
        if large.ndim and small.shape[0] * total == large.shape[0] * b:
            return slot(Leaf("rows", small.shape[0] // b, *_padding(small, large, sizes)))
        return slot(Leaf("shared"))
    if isinstance(large, dict) and isinstance(small, dict) and large.keys() == small.keys():
        return {key: _learn(small[key], large[key], sizes, leaves) for key in large}
    if isinstance(large, list | tuple) and isinstance(small, list | tuple):
        if len(large) and len(small) * total == len(large) * b:
            return slot(Leaf("items", len(small) // b))
        if len(large) == len(small):
            return type(large)([_learn(s, g, sizes, leaves) for s, g in zip(small, large, strict=True)])
    return slot(Leaf("shared"))


def _padding(
    small: Tensor, large: Tensor, sizes: tuple[int, int]
) -> tuple[Literal["right", "left"] | None, float]:
    """How the first sample, alone in `small`, was made as long as the longest in `large`."""
    if small.shape[1:] == large.shape[1:] or small.shape[2:] != large.shape[2:]:
        return None, 0.0
    length, own, padded = small.shape[1], small[0].cpu(), large[0].cpu()
    for side, kept, rest in (
        ("right", padded[:length], padded[length:]),
        ("left", padded[-length:], padded[:-length]),
    ):
        if torch.allclose(kept.double(), own.double(), rtol=1e-4, atol=1e-4 * float(own.abs().max())):
            constant = rest.flatten()[0] if bool((rest == rest.flatten()[0]).all()) else 0.0
            return side, float(constant)  # type: ignore[return-value]
    return None, 0.0


def settle_masks(layout: Layout, small: list[Any], large: list[Any]) -> Layout:
    """Name, for every mask that is None while nothing is padded, the leaf whose tokens it covers."""
    settled = list(layout.leaves)
    for n, leaf in enumerate(layout.leaves):
        if leaf.mask_of == -1:
            own = int(large[n][0].sum())
            near = [k for k, s in enumerate(small) if k != n and _length(s) == own and layout.leaves[k].side]
            if not near:
                raise DiffalignError(
                    "a part of the conditioning is there in a batch of prompts but not for one alone."
                )
            settled[n] = replace(leaf, mask_of=min(near, key=lambda k: abs(k - n)))
    return replace(layout, leaves=tuple(settled))


def _length(value: Any) -> int | None:
    return value.shape[1] if isinstance(value, Tensor) and value.ndim > 1 else None


def fits(layout: Layout, values: Sequence[Any], size: int) -> bool:
    """Whether leaves have their samples where a layout says."""
    for leaf, value in zip(layout.leaves, values, strict=True):
        if leaf.kind == "absent" and value is not None:
            return False
        if leaf.kind in ("rows", "items") and value is not None and len(value) != leaf.blocks * size:
            return False
    return True


def leaves_of(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(path, leaf) of every leaf of a tree of dicts, lists and tuples."""
    if isinstance(tree, dict | list | tuple) and len(tree):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves_of(value, (*path, key))
    else:
        yield path, tree


def _walk(skeleton: Any, tree: Any, found: dict[int, Any]) -> None:
    if isinstance(skeleton, Slot):
        found[skeleton] = tree
    elif isinstance(skeleton, dict):
        for key, value in skeleton.items():
            _walk(value, tree[key], found)
    else:
        for value, part in zip(skeleton, tree, strict=True):
            _walk(value, part, found)


def _build(skeleton: Any, values: Sequence[Any]) -> Any:
    if isinstance(skeleton, Slot):
        return values[skeleton]
    if isinstance(skeleton, dict):
        return {key: _build(value, values) for key, value in skeleton.items()}
    return type(skeleton)([_build(value, values) for value in skeleton])
