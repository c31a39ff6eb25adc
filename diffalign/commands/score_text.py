"""Scores as a table, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from diffalign.commands.scoring import Item, Scored, items, score_all
from diffalign.errors import DiffalignError, unknown
from diffalign.launching import build
from diffalign.settings import rewardarg

FORMATS = ("table", "csv", "json")


def run(
    named: Sequence[Path],
    prompts: Sequence[str],
    table: Path | None,
    rewards: Sequence[str],
    form: str,
    out: Path | None,
    batch: int,
) -> list[str]:
    """Score files as the command line asks; returns what could not be read, in words."""
    _check(prompts, table, rewards, form, out)
    wanted = items(named, prompts, table)
    with ExitStack() as undo, Progress(console=Console(stderr=True), transient=True) as progress:
        made = build.rewards(rewardarg.specs(rewards), undo)
        bar = progress.add_task("scoring", total=len(wanted))
        found = score_all(made, wanted, batch, _device(), lambda count: progress.advance(bar, count))
    text = render(found, wanted, form)
    if out:
        out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return list(found.unreadable.values())


def _check(
    prompts: Sequence[str], table: Path | None, rewards: Sequence[str], form: str, out: Path | None
) -> None:
    """What can be refused before anything is loaded."""
    if form not in FORMATS:
        raise unknown("format", form, FORMATS)
    if not rewards:
        raise DiffalignError("say with which: --reward NAME, once for each (`diffalign reward list`).")
    if prompts and table:
        raise DiffalignError("--prompt and --prompts are both given; keep one.")
    if out and not out.parent.is_dir():
        raise DiffalignError(f"the folder {out.parent} does not exist; make it first.")


def _device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def render(found: Scored, wanted: Sequence[Item], form: str) -> str:
    """What was scored, in the order it was asked for; one more row holds the scores of the whole set."""
    rows = [_row(str(item.file), item.prompt, found.scores[item]) for item in wanted if item in found.scores]
    if found.sets:
        rows.append(_row(f"all {len(rows)}", "", found.sets))
    match form:
        case "json":
            return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        case "csv":
            return _csv(rows)
    return _table(rows)


def _row(file: str, prompt: str, scores: dict[str, float]) -> dict[str, Any]:
    return {"file": file, "prompt": prompt, "scores": scores}


def _labels(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(label for row in rows for label in row["scores"]))


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["file", "prompt", *_labels(rows)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"file": row["file"], "prompt": row["prompt"], **row["scores"]} for row in rows)
    return text.getvalue()


def _table(rows: Sequence[dict[str, Any]]) -> str:
    table = Table("file", "prompt", box=None, pad_edge=False)
    for label in _labels(rows):
        table.add_column(label, justify="right", no_wrap=True)
    for row in rows:
        scores = [f"{row['scores'][k]:.4f}" if k in row["scores"] else "" for k in _labels(rows)]
        table.add_row(row["file"], row["prompt"], *scores)
    console = Console(file=io.StringIO(), width=None)
    console.print(table, markup=False)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]
