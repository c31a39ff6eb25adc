"""The commands `diffalign votes ...`."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from diffalign.preferences import Store

app = typer.Typer(help="People's votes: count, compare, export and import them.", no_args_is_help=True)

Votes = Annotated[str, typer.Argument(help="the store: a file, or the URL of a PostgreSQL database")]
Pictures = Annotated[str | None, typer.Option(help="the folder of its pictures, beside PostgreSQL")]


@app.command()
def show(votes: Votes, pictures: Pictures = None) -> None:
    """Who voted how often, who agrees, whose answers look random, and which model people prefer."""
    from diffalign.commands.votes_text import show_votes

    with closing(_existing(votes, pictures)) as store:
        show_votes(store.votes())


@app.command(name="export")
def export_votes(
    votes: Votes,
    out: Annotated[Path, typer.Option(help="a Parquet file in Pick-a-Pic's columns")],
    pictures: Pictures = None,
) -> None:
    """Write all votes that stand, with their pictures."""
    from diffalign.preferences import write_parquet

    with closing(_existing(votes, pictures)) as store:
        typer.echo(f"{write_parquet(store, out)} rows: {out}")


@app.command(name="import")
def import_votes(
    votes: Votes,
    table: Annotated[Path, typer.Argument(help="a Parquet file in Pick-a-Pic's columns")],
    pictures: Pictures = None,
) -> None:
    """Bring in votes from elsewhere; those that came before are not doubled."""
    from diffalign.preferences import Store, read_parquet

    with closing(Store.open(votes, pictures=pictures)) as store:
        found = read_parquet(store, table)
    typer.echo(f"{found.new} new votes, {found.known} known, {found.unlabelled} rows without a vote")


@app.command()
def clean(
    votes: Votes,
    days: Annotated[float, typer.Option(min=0.01, help="of pictures that are at least so old")] = 1.0,
    pictures: Pictures = None,
) -> None:
    """Remove pictures that nobody voted on; whatever a vote points to stays."""
    with closing(_existing(votes, pictures)) as store:
        typer.echo(f"{len(store.collect_garbage(timedelta(days=days)))} files removed")


def _existing(votes: str, pictures: str | None) -> Store:
    """The store, which must be there: a mistyped name makes no new one."""
    from diffalign.errors import DiffalignError
    from diffalign.preferences import Store

    if "://" not in votes and not Path(votes).is_file():
        raise DiffalignError(
            f"there is no store of votes {votes!r}; `diffalign demo --votes {votes}` makes it."
        )
    return Store.open(votes, pictures=pictures)
