"""The two kinds of errors a user sees; the command line prints their message alone."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DiffalignError(Exception):
    """Bad input: says what came, what is allowed and what to do. Exit code 2."""

    exit_code = 2


class RunError(DiffalignError):
    """A fault while running, nothing lost: says what happened and how to go on. Exit code 3."""

    exit_code = 3


def unknown(kind: str, name: str, allowed: Iterable[str]) -> DiffalignError:
    """The error for a name that does not exist, with the nearest match."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return DiffalignError(f"unknown {kind} {name!r}.{hint} Allowed: {', '.join(names)}.")
