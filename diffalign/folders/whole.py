"""Folders that are whole or not there: filled beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Fill the folder that is given, and it takes the place of `folder`; on an error nothing has happened.

    A kill leaves the old folder, the new one, or for a moment neither, but never half of one.
    """
    part, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("part", "old"))
    try:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        for written in (*part.rglob("*"), part):
            sync(written)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        sync(folder.parent)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a folder so that a kill in between never leaves half of one behind its name."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        shutil.rmtree(folder.rename(doomed))


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
