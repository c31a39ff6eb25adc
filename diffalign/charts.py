"""Curves of a run as inline SVG whose colours come from the page, so that they suit light and dark."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

Row = Mapping[str, Any]

INK = "#010203"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004")
"""Stand-ins that become the page's colours: `currentColor`, and --series-1 to --series-4."""

STYLES = [(color, dash) for dash in ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1))) for color in SERIES]
"""How curves are told apart: by colour, then by dashes; more than 16 start over."""


@dataclass(frozen=True)
class Line:
    """A curve over rounds: the metric's key, its name, and the keys of the band around it."""

    key: str
    name: str
    low: str | None = None
    high: str | None = None


@dataclass(frozen=True)
class Chart:
    """A titled set of curves; `zero` draws the line that means no change."""

    title: str
    note: str
    lines: Sequence[Line]
    zero: bool = False


def charts(rows: Sequence[Row]) -> list[tuple[Chart, str]]:
    """The charts of a run that have something to show, each with its SVG."""
    labels = sorted(
        {k.split("/")[1] for row in rows for k in row if k.endswith("/gain_sd") and k.count("/") == 2}
    )
    gains = [Line("heldout/gain_sd", "trained reward", "heldout/gain_sd_low", "heldout/gain_sd_high")]
    gains += [Line(f"heldout/{label}/gain_sd", label) for label in labels if label != "total"]
    every = [
        Chart(
            "Held-out gain", "standard deviations of the base model's scores; band: 95 %", gains, zero=True
        ),
        Chart(
            "Trained reward",
            "training prompts; band: 10 % to 90 % of the pictures",
            [Line("reward/total/mean", "reward", "reward/total/q10", "reward/total/q90")],
        ),
        Chart(
            "Diversity", "mean distance between held-out pictures", [Line("heldout/diversity", "diversity")]
        ),
        Chart("Distance from the base model", "KL in nats per picture", [Line("kl", "KL")], zero=True),
    ]
    return [(chart, draw(chart, rows)) for chart in every if _points(chart.lines[0].key, rows)[0]]


def draw(chart: Chart, rows: Sequence[Row]) -> str:
    """One chart as an SVG element without fixed size."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "diffalign", "font.size": 9}):
        figure = Figure(figsize=(4.8, 2.5), layout="constrained")
        axes = figure.add_subplot()
        if chart.zero:
            axes.axhline(0, color=INK, linewidth=0.8, alpha=0.35)
        for line, (color, dash) in zip(chart.lines, itertools.cycle(STYLES), strict=False):
            _curve(axes, line, rows, color=color, linestyle=dash)
        _plain(axes, len(chart.lines))
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True)
    return _themed(text.getvalue(), f"{chart.title}, {chart.note}")


def _curve(axes: Any, line: Line, rows: Sequence[Row], *, color: str, linestyle: Any) -> None:
    x, y = _points(line.key, rows)
    dots = {"marker": "o", "markersize": 5 if len(x) < 30 else 0}
    axes.plot(x, y, color=color, linestyle=linestyle, linewidth=2, label=line.name, **dots)
    if line.low and line.high:
        (around, low), (_, high) = _points(line.low, rows), _points(line.high, rows)
        axes.fill_between(around, low, high, color=color, alpha=0.15, linewidth=0)


def _points(key: str, rows: Sequence[Row]) -> tuple[list[int], list[float]]:
    known = [(row["round"] + 1, row[key]) for row in rows if row.get(key) is not None]
    return [x for x, _ in known], [y for _, y in known]


def _plain(axes: Any, curves: int) -> None:
    """Only what helps to read: a light grid, whole rounds, a legend where there is a choice."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_edgecolor(INK)
    axes.spines["bottom"].set_alpha(0.35)
    axes.tick_params(colors=INK, length=0)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("round", color=INK)
    if curves > 1:
        axes.legend(frameon=False, labelcolor=INK, loc="best", ncols=-(-curves // 6))


def _themed(svg: str, label: str) -> str:
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for number, color in enumerate(SERIES, 1):
        svg = svg.replace(color, f"var(--series-{number})")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]+")[^>]*>', rf'<svg \1 role="img" aria-label="{label}">', svg, count=1
    )
