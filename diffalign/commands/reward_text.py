"""Tables of rewards: what a check found, and which are installed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from diffalign.authoring.conformance import Finding
from diffalign.commands.catalog import Entry

COLOURS = {"passed": "green", "failed": "red", "skipped": "dim"}


def show_findings(name: str, found: Sequence[Finding], cost: tuple[float, float] | None) -> None:
    """One line a check, then what a picture costs."""
    table = Table(
        "check", "", "", title=f"reward {escape(name)}", box=None, pad_edge=False, title_justify="left"
    )
    for one in found:
        table.add_row(one.check, f"[{COLOURS[one.verdict]}]{one.verdict}[/]", escape(one.note))
    console = Console()
    console.print(table)
    if cost:
        console.print(f"{cost[0] * 1000:.1f} ms and {cost[1]:.1f} MB a picture", highlight=False)


def show_catalog(entries: Sequence[Entry]) -> None:
    """One line a reward."""
    table = Table("reward", "from", "needs", "can", box=None, pad_edge=False)
    for one in entries:
        can = f"[red]broken: {escape(one.error)}[/]" if one.error else escape(", ".join(one.can))
        table.add_row(one.name, escape(one.source), escape(", ".join(one.needs)), can)
    Console().print(table)
