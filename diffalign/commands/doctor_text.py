"""A diagnosis in words."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from diffalign.commands.doctor import Diagnosis


def show(found: Diagnosis) -> None:
    """Print what was captured, then one line a check."""
    console = Console()
    console.print(f"{found.description}\n{found.batching}\n", highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    for row in rows(found):
        table.add_row(*row)
    console.print(table)
    verdict = (
        "[green]ready[/green]"
        if found.healthy
        else "[yellow]look at the ratio above before you train[/yellow]"
    )
    console.print(verdict)


def rows(found: Diagnosis) -> list[tuple[str, str, str]]:
    """(what, value, remark) of every check."""
    limit = f"the clip range is {found.limit:.1e}" if found.limit else ""
    micro = "not measured" if found.ratio_micro is None else f"{found.ratio_micro:.1e}"
    phases = ", ".join(f"{name} {clock(seconds)}" for name, seconds in found.round_seconds.items())
    return [
        ("ratio, same batch", f"{found.ratio:.1e}", "nats per dimension off; must be 0"),
        ("ratio, micro-batches", micro, f"nats per dimension off; {limit}".strip("; ")),
        (
            "round trip",
            f"{found.round_trip:.1e}",
            "of a latent's size lost between latent, clean sample and noise",
        ),
        ("a round", clock(sum(found.round_seconds.values())), phases),
        ("an evaluation", clock(found.evaluation_seconds), f"{found.evaluations} of them"),
        ("peak memory", f"{found.memory_mb:,.0f} MB", "of a small round, with a whole one's trajectories"),
        ("the whole run", clock(found.run_seconds), f"{found.rounds} rounds"),
    ]


def clock(seconds: float) -> str:
    """Seconds as a person reads them."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.1f} min" if minutes >= 1 else f"{seconds:.1f} s"
