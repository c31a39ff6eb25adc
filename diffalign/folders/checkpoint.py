"""Checkpoints without pickle: tensors in safetensors, the rest in JSON, complete or not there at all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffalign.errors import DiffalignError, RunError
from diffalign.folders.whole import appearing, remove

TENSORS, REST = "state.safetensors", "state.json"


def save(folder: Path, state: Mapping[str, Any], keep: int | None = None) -> None:
    """Write a nested state of tensors and JSON values, then drop all but the newest `keep` siblings.

    A kill leaves the old checkpoints or the new one. A full disk is a RunError, and the previous
    checkpoint stays.
    """
    tensors: dict[str, Tensor] = {}
    rest = encode(state, "", tensors)
    try:
        with appearing(folder) as part:
            save_file(tensors, part / TENSORS)
            (part / REST).write_text(json.dumps(rest))
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"could not save the checkpoint {folder}: {error}. The previous checkpoint is untouched; "
            "free some space (or see to the folder's permissions), then resume."
        ) from error
    if keep is not None:
        for old in complete(folder.parent)[:-keep]:
            remove(old)


def load(folder: Path | None) -> dict[str, Any]:
    """What `save` was given, bit for bit, on the CPU."""
    if folder is None:
        raise DiffalignError("there is no complete checkpoint to load; start a new run.")
    try:
        rest = json.loads((folder / REST).read_text())
        state: dict[str, Any] = decode(rest, load_file(folder / TENSORS))
        return state
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DiffalignError(
            f"{folder} is not a readable checkpoint: {error}. Remove the folder to resume from the one before."
        ) from error


def complete(checkpoints: Path) -> list[Path]:
    """All complete checkpoints of a run, oldest first."""
    return sorted((path.parent for path in checkpoints.glob(f"[!.]*/{REST}")), key=_number)


def latest(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint, or None where no round was saved yet."""
    return next(reversed(complete(checkpoints)), None)


def _number(folder: Path) -> int:
    """The round in a checkpoint's name, which may have more digits than the name leaves room for."""
    return int(re.sub(r"\D", "", folder.name) or 0)


def encode(value: Any, at: str, tensors: dict[str, Tensor]) -> Any:
    """JSON with tensors replaced by names, under which they are put into `tensors`.

    {"!": kind, ...} marks what JSON itself cannot tell apart.
    """
    match value:
        case Tensor():
            tensors[at] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            return {"!": "tensor", "name": at}
        case Mapping():
            items = [[key, encode(inner, f"{at}/{key}", tensors)] for key, inner in value.items()]
            plain = all(isinstance(key, str) for key in value) and "!" not in value
            return dict(items) if plain else {"!": "dict", "items": items}
        case tuple():
            return {"!": "tuple", "items": encode(list(value), at, tensors)}
        case list():
            return [encode(inner, f"{at}/{index}", tensors) for index, inner in enumerate(value)]
        case None | bool() | int() | float() | str():
            return value
    raise DiffalignError(
        f"the state to save holds a {type(value).__name__} at {at or '/'}; a checkpoint holds tensors, numbers, "
        "strings, None, lists, tuples and dicts of these. Convert it in state_dict()."
    )


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `encode` was given."""
    match value:
        case {"!": "tensor", "name": name}:
            return tensors[name]
        case {"!": "dict", "items": items}:
            return {key: decode(inner, tensors) for key, inner in items}
        case {"!": "tuple", "items": items}:
            return tuple(decode(items, tensors))
        case dict():
            return {key: decode(inner, tensors) for key, inner in value.items()}
        case list():
            return [decode(inner, tensors) for inner in value]
    return value
