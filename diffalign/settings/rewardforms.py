"""The ways to write rewards in a config, read into one: label -> {name, weight, arguments}."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

FORMS = "a name, {name: ..., arguments}, a list of these, or LABEL: {name: ..., arguments} for each"
RESERVED = "total"
"""The label of the combined reward."""


def labelled(value: Any) -> dict[str, Any]:
    """Rewards in any of their forms as label -> spec; a ValueError says what is wrong."""
    found: dict[str, Any] = {}
    for label, spec in _items(value):
        if label in found:
            raise ValueError(f"holds two rewards labelled {label!r}; give one of them another `label`")
        if label == RESERVED or not re.fullmatch(r"[\w-]+", label):
            raise ValueError(
                f"holds the label {label!r}; a label is letters, digits, _ and -, and not {RESERVED!r}, "
                "the name of the combined reward"
            )
        found[label] = spec
    return found


def is_one(value: Any) -> bool:
    """Whether this is a single reward: a name, or a mapping with its name or address."""
    return isinstance(value, str) or (
        isinstance(value, dict) and any(isinstance(value.get(key), str) for key in ("name", "url"))
    )


def default_label(name: str) -> str:
    """`my_file.py:Sharpness` is shown as `Sharpness`, `hpsv2.1` as `hpsv2_1`."""
    return re.sub(r"[^\w-]", "_", name.rpartition(":")[2])


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    match value:
        case _ if is_one(value):
            yield _item(value)
        case list():
            yield from map(_item, value)
        case dict():
            yield from ((str(label), _spec(str(label), spec)) for label, spec in value.items())
        case _:
            raise ValueError(f"is {value!r}; write {FORMS}")


def _item(value: Any) -> tuple[str, Any]:
    """(label, spec) of an item of a list."""
    if isinstance(value, str):
        return default_label(value), {"name": value}
    if not is_one(value):
        raise ValueError(f"holds {value!r}; each item of the list is a name, or {{name: ..., arguments}}")
    spec = {key: inner for key, inner in value.items() if key != "label"}
    return str(value.get("label") or default_label(spec.get("name") or "remote")), spec


def _spec(label: str, spec: Any) -> Any:
    """The spec below a label: `2.0` is the weight of the reward called like its label."""
    match spec:
        case bool() | list():
            return spec
        case int() | float():
            return {"name": label, "weight": float(spec)}
        case str():
            return {"name": spec}
        case None:
            return {"name": label}
        case dict():
            return spec if is_one(spec) else {"name": label, **spec}
    return spec
