"""Conditioning that is indexed, repeated and concatenated like a tensor, whatever a pipeline keeps in it.

Dimensions: B samples, m blocks of B rows along a leaf's first axis (2 where guidance doubles the batch), L tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.models.layout import Layout, Leaf, Slot

Rows = Tensor | Sequence[int] | slice


@dataclass(frozen=True)
class Batch:
    """The leaves of a tree for B samples."""

    layout: Layout
    values: list[Any]
    size: int

    def tree(self) -> Any:
        """The tree as the pipeline made it: a mask that hides nothing is None again."""
        pairs = zip(self.layout.leaves, self.values, strict=True)
        return self.layout.build(
            [None if leaf.mask_of is not None and bool(v.all()) else v for leaf, v in pairs]
        )

    def __getitem__(self, rows: Rows) -> Batch:
        index = _indices(rows, self.size)
        pairs = zip(self.layout.leaves, self.values, strict=True)
        return replace(self, values=[_take(leaf, v, index, self.size) for leaf, v in pairs], size=len(index))

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return replace(self, values=[_to(value, device) for value in self.values])

    @classmethod
    def cat(cls, parts: Sequence[Batch]) -> Batch:
        """One batch after the other, padded to the longest."""
        first = parts[0]
        if any(part.layout != first.layout for part in parts):
            raise DiffalignError("these prompts are conditioned in different ways; encode them in one call.")
        sizes = [part.size for part in parts]
        columns = zip(*(part.values for part in parts), strict=True)
        return cls(
            first.layout,
            [_cat(*c, sizes) for c in zip(first.layout.leaves, columns, strict=True)],
            sum(sizes),
        )


@dataclass
class Conditioning:
    """What B prompts are to a policy: the pipeline's inputs and what its `encode_prompt` made of them.

    `captured` keeps what a policy found out about this batch (its denoiser's arguments), by name.
    """

    batch: Batch
    captured: dict[str, Batch] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return self.batch.size

    def __getitem__(self, rows: Rows) -> Conditioning:
        return Conditioning(self.batch[rows], {name: part[rows] for name, part in self.captured.items()})

    @property
    def prompts(self) -> list[str]:
        """The texts (B,); an error where embeddings were given instead."""
        prompts: list[str] | None = self.batch.tree()["inputs"].get("prompt")
        if prompts is None:
            raise DiffalignError(
                "this conditioning was given as embeddings; encode prompts, so that it has texts."
            )
        return prompts

    def repeat_interleave(self, repeats: int) -> Conditioning:
        """Every sample `repeats` times in a row."""
        return self[torch.arange(len(self)).repeat_interleave(repeats)]

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on another device."""
        return Conditioning(
            self.batch.to(device), {name: part.to(device) for name, part in self.captured.items()}
        )

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """One after the other; shorter ones are padded and masked. Raises where a family cannot be padded."""
        return parts[0] if len(parts) == 1 else Conditioning(Batch.cat([part.batch for part in parts]))

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors alone: the leaves, and the structure as JSON in bytes."""
        tensors: dict[str, Tensor] = {}
        values = [_dump(value, str(n), tensors) for n, value in enumerate(self.batch.values)]
        layout = self.batch.layout
        text = json.dumps(
            {
                "size": len(self),
                "values": values,
                "skeleton": _dump(layout.skeleton, "s", tensors),
                "leaves": [vars(leaf) for leaf in layout.leaves],
            }
        )
        return {"structure": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8), **tensors}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> Conditioning:
        """What `state_dict` wrote."""
        data = json.loads(bytes(state["structure"].tolist()).decode())
        layout = Layout(_parse(data["skeleton"], state), tuple(Leaf(**leaf) for leaf in data["leaves"]))
        return cls(Batch(layout, [_parse(value, state) for value in data["values"]], data["size"]))


def rows_layout(tree: dict[str, Any], size: int) -> Layout:
    """The layout of arguments given with one row (or list item) for each of `size` samples."""
    names = list(tree)
    mask = next((n for n, name in enumerate(names) if "mask" in name), None)
    for name, value in tree.items():
        if not isinstance(value, Tensor | list | tuple) or len(value) != size:
            raise DiffalignError(
                f"{name!r} must be a tensor or a list with one row for each of {size} samples."
            )
    side: Literal["right"] | None = "right" if mask is not None else None
    kinds = (Leaf("rows", side=side) if isinstance(tree[name], Tensor) else Leaf("items") for name in names)
    return Layout({name: Slot(n) for n, name in enumerate(names)}, tuple(kinds))


def fill_masks(batch: Batch) -> Batch:
    """Write out the masks that the pipeline left away because nothing was padded."""
    values = list(batch.values)
    for n, leaf in enumerate(batch.layout.leaves):
        if leaf.mask_of is not None and values[n] is None:
            tokens = values[leaf.mask_of]
            shape = leaf.blocks * batch.size, tokens.shape[1]
            values[n] = torch.ones(shape, dtype=getattr(torch, str(leaf.dtype)), device=tokens.device)
    return replace(batch, values=values)


def _indices(rows: Rows, size: int) -> Tensor:
    if isinstance(rows, slice):
        return torch.arange(size)[rows]
    index = torch.as_tensor(rows).cpu()
    return index.nonzero().flatten() if index.dtype == torch.bool else index.long()


def _take(leaf: Leaf, value: Any, index: Tensor, size: int) -> Any:
    if leaf.kind in ("shared", "absent") or value is None:
        return value
    at = torch.cat([index + block * size for block in range(leaf.blocks)])
    return value[at.to(value.device)] if leaf.kind == "rows" else [value[k] for k in at.tolist()]


def _cat(leaf: Leaf, parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    if leaf.kind in ("shared", "absent") or parts[0] is None:
        return parts[0]
    blocks = range(leaf.blocks)
    if leaf.kind == "items":
        return [x for b in blocks for p, n in zip(parts, sizes, strict=True) for x in p[b * n : (b + 1) * n]]
    longest = max(part.shape[1] if part.ndim > 1 else 0 for part in parts)
    full = [_pad(leaf, part, longest) for part in parts]
    return torch.cat([p[b * n : (b + 1) * n] for b in blocks for p, n in zip(full, sizes, strict=True)])


def _pad(leaf: Leaf, value: Tensor, length: int) -> Tensor:
    if value.ndim < 2 or value.shape[1] == length:
        return value
    if leaf.side is None:
        raise DiffalignError("prompts of different length do not fit together here; encode them in one call.")
    rest = value.new_full((value.shape[0], length - value.shape[1], *value.shape[2:]), leaf.pad)
    return torch.cat([value, rest] if leaf.side == "right" else [rest, value], 1)


def _to(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return [_to(part, device) for part in value] if _is_list(value) else value


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _dump(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON of a value whose tensors go into `tensors` under `name`."""
    match value:
        case Tensor():
            tensors[name] = value.detach()
            return {"tensor": name}
        case Slot():
            return {"slot": int(value)}
        case dict():
            return {"dict": [[key, _dump(part, f"{name}.{key}", tensors)] for key, part in value.items()]}
        case list() | tuple():
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [_dump(part, f"{name}.{k}", tensors) for k, part in enumerate(value)]}
        case None | bool() | int() | float() | str():
            return {"value": value}
    raise DiffalignError(
        f"this pipeline's conditioning holds a {type(value).__name__}, which cannot be saved."
    )


def _parse(data: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = data.items()
    match kind:
        case "tensor":
            return tensors[value]
        case "slot":
            return Slot(value)
        case "dict":
            return {key: _parse(part, tensors) for key, part in value}
        case "list" | "tuple":
            return (list if kind == "list" else tuple)(_parse(part, tensors) for part in value)
    return value
