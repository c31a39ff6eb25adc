"""The two kinds of errors a user sees; the command line prints their message alone."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path


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


def told(error: BaseException) -> str:
    """An error of somebody else's code in one line: its kind, its message, and their line that it came from."""
    theirs = [
        f for f in traceback.extract_tb(error.__traceback__) if not any(p in f.filename for p in _NOT_THEIRS)
    ]
    located = theirs and not isinstance(error, SyntaxError)  # whose message says where
    where = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if located else ""
    return f"{type(error).__name__}: {error}{where}"


_NOT_THEIRS = ("<frozen", "importlib", "site-packages", str(Path(__file__).parent))
