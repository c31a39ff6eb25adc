"""Files that are whole or not there: text, JSON and pictures, written beside their place and renamed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from diffalign.errors import RunError
from diffalign.folders.whole import sync


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the path that is given, and it takes the place of `path`: readers see the old file or the new."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    yield part
    sync(part)
    part.replace(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into an error that says how to go on."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"could not write {path}: {error}. What was saved before is untouched; "
            "free some space (or see to the folder's permissions), then resume."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Replace a file whole."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def finite(value: Any) -> Any:
    """JSON has no nan and no infinity: they become null."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {key: finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [finite(inner) for inner in value]
    return value


def save_png(frames: Tensor, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """One picture (1, 3, H, W), or an animation (F, 3, H, W) as an animated PNG of 8 frames a second.

    notes: what is written into the file, keyword -> text.
    """
    pixels = frames.detach().float().cpu().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    first, *rest = [Image.fromarray(each) for each in pixels]
    more: dict[str, Any] = {}
    if rest:
        more |= {"save_all": True, "append_images": rest, "duration": 125, "loop": 0}
    if notes:
        more["pnginfo"] = PngInfo()
        for keyword, text in notes.items():
            more["pnginfo"].add_text(keyword, text)
    first.save(path, **more)
