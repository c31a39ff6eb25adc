"""Pictures that no vote points to are removed, while the app is running.

Showing or voting begins a picture's time of grace anew *before* the event is written, and a picture is
moved aside before its age is read for good: whichever comes first, the other sees it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from datetime import timedelta
from pathlib import Path

from diffalign.errors import DiffalignError
from diffalign.preferences.pictures import ID

LEAST = timedelta(minutes=5)
"""Longer than any vote waits for the database."""
ASIDE = ".doomed"


def collect(folder: Path, kept: Callable[[], Collection[str]], older_than: timedelta) -> list[Path]:
    """Remove files not touched for `older_than` whose picture is not `kept`, and what kills left; what went."""
    if older_than < LEAST:
        raise DiffalignError(
            f"garbage must be older than {LEAST}, not {older_than}: fresh pictures are in use."
        )
    for path in folder.glob(f"*{ASIDE}"):  # of a collector that was killed
        _move(path, path.with_suffix(""))
    before = time.time() - older_than.total_seconds()
    old = sorted(path for path in _files(folder) if _touched(path) < before)  # a picture, then its trajectory
    keep = kept() if old else ()
    return [path for path in old if path.stem not in keep and not _needed(path) and _removed(path, before)]


def _files(folder: Path) -> Iterator[Path]:
    """What the picture store wrote; anything else in the folder is somebody else's."""
    for path in folder.iterdir():
        if path.suffix in (".png", ".safetensors") and (ID.fullmatch(path.stem) or _is_part(path)):
            yield path


def _is_part(path: Path) -> bool:
    return path.name.startswith(".part-")


def _needed(path: Path) -> bool:
    """Whether this is the trajectory of a picture that stays."""
    return path.suffix == ".safetensors" and path.with_suffix(".png").exists()


def _touched(path: Path) -> float:
    """Seconds since 1970; a file that is gone is not garbage."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return float("inf")


def _removed(path: Path, before: float) -> bool:
    aside = path.with_name(path.name + ASIDE)
    _move(path, aside)
    if _touched(aside) >= before:
        _move(aside, path)
        return False
    aside.unlink(missing_ok=True)
    return True


def _move(path: Path, to: Path) -> None:
    """Rename; nothing where another collector was faster."""
    try:
        path.rename(to)
    except FileNotFoundError:
        return
