"""What the results of a search come to: gains with their intervals, and what they cost.

A result is a row of results.jsonl; scores that are not finite are null there, and count for nothing here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffalign.folders.pictures import read
from diffalign.folders.searchfolder import SearchFolder
from diffalign.reward import AnyReward, kind
from diffalign.rewarding.measure import measure_set
from diffalign.searching.ledger import Ledger
from diffalign.training.evaluate import bootstrap

Row = Mapping[str, Any]
POINTS = 200
"""Places on a curve."""


def conclude(folder: SearchFolder, watched: Mapping[str, AnyReward], prompts: int) -> dict[str, Any]:
    """Collect the results of a folder into results.jsonl and summary.json; the summary."""
    rows = folder.collect()
    found = summary(rows, prompts) | {"sets": sets(folder, rows, watched)}
    folder.write_summary(found)
    return found


def summary(rows: Sequence[Row], prompts: int) -> dict[str, Any]:
    """Means over prompts of every score before and after, and the total cost of the finished ones."""
    names = dict.fromkeys(name for row in rows for name in row["scores"]["best"])
    each = {name: compared(rows, name) for name in names}
    judges = {label for row in rows for label in row["eval_rewards"]}
    return {
        "prompts": prompts,
        "finished": len(rows),
        "reward": each.pop("total", None),
        "rewards": {name: found for name, found in each.items() if name.split(".")[0] not in judges},
        "eval_rewards": {name: found for name, found in each.items() if name.split(".")[0] in judges},
        "cost": {name: sum(row["cost"][name] for row in rows) for name in Ledger.KINDS},
        "seconds": sum(row["seconds"] for row in rows),
    }


def compared(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """Mean of a score before and after, the mean gain of a prompt and its 95 % interval, in the score's unit."""
    pairs = [(row["scores"]["first"].get(name), row["scores"]["best"].get(name)) for row in rows]
    known = torch.tensor([p for p in pairs if None not in p], dtype=torch.float64).reshape(-1, 2)
    if not len(known):
        return {"first": None, "best": None, "gain": None, "gain_ci": None}
    gain = known[:, 1] - known[:, 0]
    redrawn = [row["scores"].get("decoded", {}).get(name) for row in rows]
    also = [value for value in redrawn if value is not None]
    return {
        "first": float(known[:, 0].mean()),
        "best": float(known[:, 1].mean()),
        "gain": float(gain.mean()),
        "gain_ci": list(bootstrap(gain)) if len(gain) > 1 else None,
        **({"decoded": sum(also) / len(also)} if also else {}),
    }


def sets(folder: SearchFolder, rows: Sequence[Row], watched: Mapping[str, AnyReward]) -> dict[str, Any]:
    """What rewards that judge all pictures together say before and after."""
    judges = {label: reward for label, reward in watched.items() if kind(reward) == "set"}
    found: dict[str, dict[str, float]] = {label: {} for label in judges}
    for tag in ("first", "best") if judges else ():
        images = torch.stack([read(folder.path / row["pictures"][tag]) for row in rows])
        for label, reward in judges.items():
            found[label][tag] = measure_set(reward, images, [row["prompt"] for row in rows], label)
    return found


def path(rows: Sequence[Row]) -> list[dict[str, float]]:
    """The best reward against denoiser calls: mean, 10 % and 90 % of the prompts, where all have a reward."""
    places = sorted({mark["denoiser_calls"] for row in rows for mark in row["path"]})
    found = []
    for place in sorted({*places[:: 1 + len(places) // POINTS], *places[-1:]}):
        at = [_best_at(row["path"], place) for row in rows]
        values = torch.tensor([value for value in at if value is not None], dtype=torch.float64)
        if len(values) == len(rows):
            low, high = values.quantile(torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
            found.append({"denoiser_calls": place, "best": float(values.mean()), "low": low, "high": high})
    return found


def _best_at(marks: Sequence[Row], calls: int) -> float | None:
    """The best reward of a prompt when it had cost this many denoiser calls."""
    reached = bisect_right(marks, calls, key=lambda mark: mark["denoiser_calls"])
    return marks[reached - 1]["best"] if reached else None
