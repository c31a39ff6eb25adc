"""Curves of a run as inline SVG whose colours come from the page, so that they suit light and dark."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

Row = Mapping[str, Any]

INK = "#010203"
SERIES = tuple(f"#0a000{number}" for number in range(1, 9))
"""Stand-ins that become the page's colours: `currentColor`, and --series-1 to --series-8."""

STYLES = [(color, dash) for dash in ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1))) for color in SERIES]
"""How curves are told apart: by colour, then by dashes; more than 32 start over."""


@dataclass(frozen=True)
class Line:
    """A curve: the metric's key, its name, the keys of the band around it, and how it is drawn."""

    key: str
    name: str
    low: str | None = None
    high: str | None = None
    style: str | None = None


@dataclass(frozen=True)
class Chart:
    """A titled set of curves over the key `over`; `zero` draws the line that means no change."""

    title: str
    note: str
    lines: Sequence[Line]
    zero: bool = False
    over: str = "round"


def charts(rows: Sequence[Row]) -> list[tuple[Chart, str]]:
    """The charts of a run that have something to show, each with its SVG; rounds count from 1."""
    rows = [{**row, "round": row["round"] + 1} for row in rows]
    every = [
        Chart(
            "Held-out gain",
            "standard deviations of the base model's scores; band: 95 %",
            _gains(rows),
            zero=True,
        ),
        Chart(
            "Trained reward",
            "training prompts; band: 10 % to 90 % of the pictures",
            [Line("reward/total/mean", "reward", "reward/total/q10", "reward/total/q90")],
        ),
        _multipliers(rows),
        *_sets(rows),
        Chart(
            "Diversity", "mean distance between held-out pictures", [Line("heldout/diversity", "diversity")]
        ),
        Chart("Distance from the base model", "KL in nats per picture", [Line("kl", "KL")], zero=True),
    ]
    return [(chart, draw(chart, rows)) for chart in every if _shown(chart, rows)]


def _shown(chart: Chart, rows: Sequence[Row]) -> bool:
    return bool(chart.lines) and bool(_points(chart.lines[0].key, chart.over, rows)[0])


def _gains(rows: Sequence[Row]) -> list[Line]:
    """The trained reward, what it is made of where that is several, and what it was not trained on."""
    labels = [label for label in _middles(rows, "heldout/", "/gain_sd") if label != "total"]
    trained = [label for label in labels if label in _middles(rows, "reward/", "/mean")]
    total = Line("heldout/gain_sd", "trained reward", "heldout/gain_sd_low", "heldout/gain_sd_high")
    parts = [_gain(label, f"{label}, trained on", "--") for label in trained if len(trained) > 1]
    return [
        *([total] if "total" in _middles(rows, "heldout/", "/gain_sd") else []),
        *parts,
        *(_gain(label, f"{label}, held out", ":") for label in labels if label not in trained),
    ]


def _gain(label: str, name: str, style: str) -> Line:
    return Line(f"heldout/{label}/gain_sd", name, style=style)


def _multipliers(rows: Sequence[Row]) -> Chart:
    names = _middles(rows, "multiplier/", "")
    lines = [Line(f"multiplier/{name}", name) for name in names]
    return Chart("Multipliers", f"of {', '.join(names)}; 0: kept without pressure", lines, zero=True)


def _sets(rows: Sequence[Row]) -> list[Chart]:
    """One chart for each reward of all pictures together, since they have units of their own."""
    return [
        Chart(
            label,
            "one number for all held-out pictures",
            [Line(f"heldout/{label}/set", "trained"), Line(f"heldout/{label}/set_base", "base", style="--")],
        )
        for label in _middles(rows, "heldout/", "/set")
    ]


def _middles(rows: Sequence[Row], start: str, end: str) -> list[str]:
    """What stands between `start` and `end` in the keys of the rows."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith(start) and key.endswith(end))
    found = (key[len(start) : len(key) - len(end)] for key in keys)
    return [middle for middle in found if middle and "/" not in middle]


def draw(chart: Chart, rows: Sequence[Row]) -> str:
    """One chart as an SVG element without fixed size."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "diffalign", "font.size": 9}):
        figure = Figure(figsize=(4.8, 2.5 + 0.09 * len(chart.lines)), layout="constrained")
        axes = figure.add_subplot()
        if chart.zero:
            axes.axhline(0, color=INK, linewidth=0.8, alpha=0.35)
        for line, (color, dash) in zip(chart.lines, itertools.cycle(STYLES), strict=False):
            _curve(axes, line, chart.over, rows, color=color, dash=dash)
        _plain(axes, len(chart.lines), chart.over.replace("_", " "))
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True)
    return _themed(text.getvalue(), f"{chart.title}, {chart.note}")


def _curve(axes: Any, line: Line, over: str, rows: Sequence[Row], *, color: str, dash: Any) -> None:
    x, y = _points(line.key, over, rows)
    dots = {"marker": "o", "markersize": 5 if len(x) < 30 else 0}
    style = line.style or dash
    axes.plot(x, y, color=color, linestyle=style, linewidth=2, label=line.name, **dots)
    if line.low and line.high:
        (around, low), (_, high) = _points(line.low, over, rows), _points(line.high, over, rows)
        axes.fill_between(around, low, high, color=color, alpha=0.15, linewidth=0)


def _points(key: str, over: str, rows: Sequence[Row]) -> tuple[list[int], list[float]]:
    known = [(row[over], row[key]) for row in rows if row.get(key) is not None]
    return [x for x, _ in known], [y for _, y in known]


def _plain(axes: Any, curves: int, over: str) -> None:
    """Only what helps to read: a light grid, whole numbers below, a legend where there is a choice."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_edgecolor(INK)
    axes.spines["bottom"].set_alpha(0.35)
    axes.tick_params(colors=INK, length=0)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_xlabel(over, color=INK)
    if curves > 1:
        columns = 2 if curves <= 8 else 4
        axes.figure.legend(frameon=False, labelcolor=INK, loc="outside lower center", ncols=columns)


def _themed(svg: str, label: str) -> str:
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for number, color in enumerate(SERIES, 1):
        svg = svg.replace(color, f"var(--series-{number})")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]+")[^>]*>',
        rf'<svg \1 role="img" aria-label="{escape(label)}">',
        svg,
        count=1,
    )
