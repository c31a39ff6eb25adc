"""Pictures and videos from files, as tensors in [0, 1]. Headers are read first, so that sizes are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps, ImageSequence
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from diffalign.errors import DiffalignError

VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi"}
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".apng", ".avif"}


def find(named: Sequence[Path]) -> list[Path]:
    """The files that are named, and all pictures and videos of the folders, searched deeply, in order."""
    found = [file for path in named for file in (_inside(path) if path.is_dir() else [path])]
    return list(dict.fromkeys(found))


def _inside(folder: Path) -> list[Path]:
    inside = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES | VIDEOS)
    if not inside:
        raise DiffalignError(
            f"the folder {folder} has no pictures or videos ({', '.join(sorted(PICTURES | VIDEOS))})."
        )
    return inside


def size(path: Path) -> tuple[int, ...]:
    """(H, W) of a picture, (F, H, W) of a video; an error in words where the file is neither."""
    if path.suffix.lower() in VIDEOS:
        film = read(path)
        return (len(film), *film.shape[-2:])
    with _opened(path) as picture, _readable(path):
        frames = int(getattr(picture, "n_frames", 1))
        width, height = ImageOps.exif_transpose(picture).size if frames == 1 else picture.size
    return (height, width) if frames == 1 else (frames, height, width)


def read(path: Path) -> Tensor:
    """A picture (3, H, W), or a video (F, 3, H, W), float32 in [0, 1], on white where it is transparent."""
    with _readable(path):
        if path.suffix.lower() in VIDEOS:
            return torch.stack([pil_to_tensor(frame) for frame in _film(path)]) / 255
        with _opened(path) as picture:
            frames = [pil_to_tensor(_upright(frame)) for frame in ImageSequence.Iterator(picture)]
    return (frames[0] if len(frames) == 1 else torch.stack(frames)) / 255


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A file that turns out to be damaged is an error in words."""
    try:
        yield
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DiffalignError(f"{path} cannot be read: {error}") from error


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError as error:
        raise DiffalignError(f"{path} does not exist.") from error
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DiffalignError(f"{path} cannot be read as a picture: {error}") from error


def _upright(picture: Image.Image) -> Image.Image:
    """As a viewer shows it: turned as its camera says, and on white where it is transparent."""
    layers = ImageOps.exif_transpose(picture).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")


def _film(path: Path) -> Iterator[Any]:
    """The frames of a video file, by PyAV."""
    try:
        import av
    except ImportError as error:
        raise DiffalignError(
            f"{path} is a video file, which needs PyAV: pip install 'diffalign[video]'. Animated PNG, GIF and "
            "WebP are read without."
        ) from error
    if not path.is_file():
        raise DiffalignError(f"{path} does not exist.")
    with av.open(str(path)) as film:
        yield from (frame.to_image() for frame in film.decode(video=0))
