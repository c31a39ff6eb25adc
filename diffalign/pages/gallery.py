"""The gallery of a search: one self-contained page with pictures before and after, scores, paths and trees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.folders.searchfolder import SearchFolder
from diffalign.pages import drawing, outcome, page
from diffalign.pages.charts import Chart, Line, draw
from diffalign.pages.report import Finding

SHOWN = 200
"""At most so many prompts: the page stays small."""
TAGS = {"first": "before", "best": "after", "decoded": "drawn once more"}
CURVE = Chart(
    "Best reward",
    "mean of all prompts against denoiser calls of a prompt; band: 10 % to 90 % of the prompts",
    [Line("best", "best reward", "low", "high")],
    over="denoiser_calls",
)


@dataclass(frozen=True)
class Card:
    """One prompt: its pictures as data URIs by name, their scores by name, its path and its tree as SVG."""

    prompt: str
    pictures: Mapping[str, str]
    scores: Mapping[str, Sequence[float | None]]
    cost: Mapping[str, int]
    path: str
    tree: str


def write(folder: SearchFolder) -> Path:
    """gallery.html of a search, ended or not."""
    rows, summary = folder.results(), folder.summary()
    points = outcome.path(rows)
    return page.write(
        folder,
        "gallery.html",
        summary=summary,
        verdict=list(verdict(summary)),
        cards=[_card(folder, row) for row in rows[:SHOWN]],
        count=len(rows),
        curve=(CURVE, draw(CURVE, points)) if len(points) > 1 else None,
    )


def verdict(summary: Mapping[str, Any]) -> Iterator[Finding]:
    """What rose and what fell, in plain words; a change is one whose interval excludes 0."""
    if not summary.get("reward"):
        yield Finding("flat", "No prompt is finished yet.")
        return
    yield _change("The reward that was searched for", summary["reward"])
    judged = [
        _change(f"The reward “{label}”, which only judges,", found)
        for label, found in summary["eval_rewards"].items()
    ]
    yield from judged
    if any(finding.tone == "bad" for finding in judged):
        yield Finding(
            "bad",
            "One number went up while another went down. Compare the pictures before you believe the reward.",
        )
    if lost := summary["cost"]["lost"]:
        yield Finding("flat", f"{lost} scores were not finite; those samples lost.")
    if (finished := summary["finished"]) < summary["prompts"]:
        yield Finding("flat", f"{finished} of {summary['prompts']} prompts are finished.")


def _change(what: str, found: Mapping[str, Any]) -> Finding:
    if found["gain"] is None:
        return Finding("flat", f"{what} was not measured.")
    amount = f"from {found['first']:.4g} to {found['best']:.4g} ({found['gain']:+.4g})"
    if found["gain_ci"] is None:
        return Finding("flat", f"{what} went {amount}, of a single prompt.")
    low, high = found["gain_ci"]
    amount += f"; 95 % interval of the mean gain {low:+.4g} to {high:+.4g}"
    tone, verb = (
        ("good", "rose") if low > 0 else ("bad", "fell") if high < 0 else ("flat", "did not move measurably,")
    )
    return Finding(tone, f"{what} {verb} {amount}.")


def _card(folder: SearchFolder, row: Mapping[str, Any]) -> Card:
    by_tag = [row["scores"][tag] for tag in row["pictures"]]
    scores = {name: [own.get(name) for own in by_tag] for name in by_tag[0]}
    total = scores.pop("total")
    nodes = row["extras"].get("nodes")
    return Card(
        prompt=row["prompt"],
        pictures={TAGS[tag]: page.data_uri(folder.path / file) for tag, file in row["pictures"].items()},
        scores={"reward": total, **{name: own for name, own in scores.items() if own != total}},
        cost=row["cost"],
        path=drawing.sparkline([mark["best"] for mark in row["path"]]),
        tree=drawing.tree(nodes) if nodes else "",
    )
