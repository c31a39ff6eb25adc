"""Pictures to compare with, from where a config says they are."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from itertools import groupby, islice
from pathlib import Path

import pyarrow.parquet as pq
import pyarrow.types as types
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from diffalign.reward import DiffalignError
from diffalign_rewards._weights import reading

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
AT_ONCE = 64
"""Pictures in one tensor."""


def find(reward: str, where: str | Sequence[str]) -> list[Path]:
    """The files of a folder (searched deeply), of a list, a single file, or "emoji": the packaged pictures.

    A file is a picture, or a parquet with a column of encoded pictures.
    """
    if where == "emoji":
        return [Path(str(files("diffalign_demo") / "emoji" / "pictures.parquet"))]
    named = [Path(path).expanduser() for path in ([where] if isinstance(where, str) else where)]
    if absent := [str(path) for path in named if not path.exists()]:
        raise DiffalignError(
            f"{reward} compares with reference pictures, and {', '.join(absent)} does not exist "
            f"(looked from {Path.cwd()}). Give a folder of pictures, or picture files."
        )
    found = [file for path in named for file in (_inside(path) if path.is_dir() else [path])]
    if not found:
        raise DiffalignError(f"{reward} found no picture ({', '.join(sorted(SUFFIXES))}) in {where}.")
    return found


def _inside(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def batches(paths: Iterable[Path]) -> Iterator[Tensor]:
    """Pictures (B, 3, H, W) in [0, 1]; neighbours of one size come together."""
    for _, alike in groupby(_tensors(paths), key=lambda picture: picture.shape):
        while some := list(islice(alike, AT_ONCE)):
            yield torch.stack(some)


def _tensors(paths: Iterable[Path]) -> Iterator[Tensor]:
    for path in paths:
        for source in _encoded(path) if path.suffix == ".parquet" else [path]:
            with reading(path, "a picture"), Image.open(source) as picture:
                levels = pil_to_tensor(_upright(picture))
            yield levels / 255


def _upright(picture: Image.Image) -> Image.Image:
    """As a viewer shows it: turned as its camera says, and on white where it is transparent."""
    layers = ImageOps.exif_transpose(picture).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def _encoded(path: Path) -> Iterator[io.BytesIO]:
    """The pictures of a parquet: its first column of bytes, or of structs with `bytes`, as datasets writes."""
    with reading(path, "a parquet"):
        table = pq.ParquetFile(path)
    columns = {field.name: field.type for field in table.schema_arrow}
    pictures = [name for name, kind in columns.items() if _holds_bytes(kind)]
    if not pictures:
        raise DiffalignError(
            f"{path} has no column of encoded pictures; its columns are {', '.join(columns)}."
        )
    for rows in table.iter_batches(AT_ONCE, columns=pictures[:1]):
        for value in rows.column(0).to_pylist():
            yield io.BytesIO(value["bytes"] if isinstance(value, dict) else value)


def _holds_bytes(kind: object) -> bool:
    if types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)  # type: ignore[attr-defined]
    return bool(types.is_binary(kind) or types.is_large_binary(kind))
