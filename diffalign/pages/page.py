"""Self-contained HTML pages: templates of this folder, and pictures as data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
import yaml
from PIL import Image, ImageSequence

from diffalign import __version__
from diffalign.folders.folder import Folder

THUMBNAIL = 320
"""Pictures are at most so many pixels wide: pages stay small."""


def render(template: str, **values: Any) -> str:
    """A page of the template with these values, escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    made = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template(template)
    return made.render(**values, version=__version__)


def write(folder: Folder, template: str, **values: Any) -> Path:
    """The page of a folder, named as its template, with the folder's name and config beside these values."""
    config = folder.config()
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    known = {"name": folder.path.resolve().name, "path": folder.path, "config": config, "config_text": text}
    target = folder.path / template
    target.write_text(render(template, **known, **values), encoding="utf-8")
    return target


def data_uri(path: Path) -> str:
    """A picture or an animation as small WebP."""
    with Image.open(path) as picture:
        frames = [
            (_small(frame), round(frame.info.get("duration", 0))) for frame in ImageSequence.Iterator(picture)
        ]
    (first, *rest), waits = zip(*frames, strict=True)
    buffer = io.BytesIO()
    first.save(buffer, "WEBP", quality=90, save_all=True, append_images=rest, duration=waits, loop=0)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _small(frame: Image.Image) -> Image.Image:
    small = frame.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small
