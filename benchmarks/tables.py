"""Tables of docs/results.md, between marks of their own."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
MACHINE = f"Machine: {platform.machine()}, {platform.system()}, Python {platform.python_version()}."


def interval(value: float, bounds: Sequence[float]) -> str:
    """`0.91 [0.80, 1.02]`."""
    return f"{value:.2f} [{bounds[0]:.2f}, {bounds[1]:.2f}]"


def row(cells: Iterable[object]) -> str:
    """One line of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def table(names: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """The Markdown table."""
    return "\n".join([row(names), "|" + "---|" * len(names), *map(row, rows)])


def write(name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- end of NAME -->`."""
    path, first, last = DOCS / "results.md", f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = path.read_text().split(first)
    path.write_text(f"{before}{first}\n{text}\n{last}{rest.split(last)[1]}")
