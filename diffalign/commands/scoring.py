"""`diffalign score`: picture files and prompts in, scores out; one size at a time, whatever is mixed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.folders import pictures
from diffalign.reward import AnyReward, kind
from diffalign.rewarding.measure import measure, measure_set, prepare


@dataclass(frozen=True)
class Item:
    """A file and what it shall show."""

    file: Path
    prompt: str


@dataclass
class Scored:
    """Scores by label for each item that could be read, of whole sets, and why the others could not."""

    scores: dict[Item, dict[str, float]] = field(default_factory=dict)
    sets: dict[str, float] = field(default_factory=dict)
    unreadable: dict[Item, str] = field(default_factory=dict)


def items(named: Sequence[Path], prompts: Sequence[str], table: Path | None) -> list[Item]:
    """The files with their prompts: one for all, one for each, or by file from a table."""
    if table is not None:
        return _from_table(table, pictures.find(named))
    files = pictures.find(named)
    if not files or len(prompts) not in (1, len(files)):
        raise DiffalignError(
            f"there are {len(files)} pictures and {len(prompts)} prompts; give --prompt once for all of them, or "
            "once for each in order (--prompt '' where rewards read none), or --prompts FILE."
        )
    each = list(prompts) * (len(files) if len(prompts) == 1 else 1)
    return [Item(*pair) for pair in zip(files, each, strict=True)]


def _from_table(table: Path, files: Sequence[Path]) -> list[Item]:
    listed = {(table.parent / name).resolve(): Item(table.parent / name, text) for name, text in _rows(table)}
    if lacking := [str(file) for file in files if file.resolve() not in listed]:
        raise DiffalignError(
            f"{table} has no prompt for {', '.join(lacking)}; files are named from its folder."
        )
    return [Item(file, listed[file.resolve()].prompt) for file in files] or list(listed.values())


def _rows(table: Path) -> Iterator[tuple[str, str]]:
    """(file, prompt) of every row of a CSV with a header, or line of a JSONL."""
    if table.suffix not in (".csv", ".jsonl") or not table.is_file():
        raise DiffalignError(f"--prompts takes a .csv or .jsonl with file and prompt; got {table}.")
    with table.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines) if table.suffix == ".csv" else map(_parsed, lines)
        for number, row in enumerate(rows, 1):
            if not all(isinstance(row.get(key), str) for key in ("file", "prompt")):
                raise DiffalignError(f"row {number} of {table} has no file or no prompt: {row}.")
            yield row["file"], row["prompt"]


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = line.strip()
    return found if isinstance(found, dict) else {"line": found}


@torch.no_grad()
def score_all(
    rewards: Mapping[str, AnyReward],
    wanted: Sequence[Item],
    at_once: int,
    device: torch.device,
    tick: Callable[[int], object] = lambda count: None,
) -> Scored:
    """Score every item that can be read; `tick` is told how many more are done."""
    found = Scored()
    prepare(rewards, [item.prompt for item in wanted])
    sets = {label: reward for label, reward in rewards.items() if kind(reward) == "set"}
    single = {label: reward for label, reward in rewards.items() if label not in sets}
    compares = any(kind(reward) == "group" for reward in single.values())
    sizes = _by_size(wanted, found)
    tick(len(found.unreadable))
    if sets and len(sizes) > 1:
        raise DiffalignError(
            f"{', '.join(sets)} judge all pictures together, and these are of {len(sizes)} sizes; give one size."
        )
    for alike in sizes.values():
        portion = len(alike) if sets or compares else at_once
        for start in range(0, len(alike), portion):
            _score_some(single, sets, alike[start : start + portion], device, found)
            tick(len(alike[start : start + portion]))
    return found


def _by_size(wanted: Sequence[Item], found: Scored) -> dict[tuple[int, ...], list[Item]]:
    sizes: dict[tuple[int, ...], list[Item]] = {}
    for item in wanted:
        try:
            sizes.setdefault(pictures.size(item.file), []).append(item)
        except DiffalignError as error:
            found.unreadable[item] = str(error)
    return sizes


def _score_some(
    single: Mapping[str, AnyReward],
    sets: Mapping[str, AnyReward],
    some: Sequence[Item],
    device: torch.device,
    found: Scored,
) -> None:
    """Score items of one size together."""
    good, tensors = _readable(some, found)
    if not good:
        return
    images, prompts = torch.stack(tensors).to(device), [item.prompt for item in good]
    columns = measure(single, images, prompts)
    for row, item in enumerate(good):
        found.scores[item] = {label: float(values[row]) for label, values in columns.items()}
    found.sets |= {label: measure_set(reward, images, prompts, label) for label, reward in sets.items()}


def _readable(some: Sequence[Item], found: Scored) -> tuple[list[Item], list[Tensor]]:
    good: list[Item] = []
    tensors: list[Tensor] = []
    for item in some:
        try:
            tensors.append(pictures.read(item.file))
            good.append(item)
        except DiffalignError as error:
            found.unreadable[item] = str(error)
    return good, tensors
