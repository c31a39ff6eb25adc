"""Pictures, and the trajectories that made them, in files named by what is in them.

A picture's id is the SHA-256 of its PNG, which holds its prompt, model and seed and the SHA-256 of its
trajectory: whatever is read is what was added, or an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from diffalign.errors import DiffalignError, RunError
from diffalign.folders.saving import save_png
from diffalign.folders.whole import sync
from diffalign.preferences.vote import check_text
from diffalign.trajectory import Trajectory

ID = re.compile(r"[0-9a-f]{64}")
NOTES = "diffalign"
"""The PNG keyword under which a picture's notes lie, as JSON."""


@dataclass(frozen=True)
class Picture:
    """What is known of a picture; uid: its name elsewhere, trajectory: the SHA-256 of its file."""

    prompt: str
    model: str
    seed: int | None = None
    trajectory: str | None = None
    uid: str | None = None


class Pictures:
    """A folder of `<id>.png` and `<id>.safetensors`; only ids are ever made into paths."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _said(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        image: Tensor,
        *,
        prompt: str,
        model: str,
        seed: int | None = None,
        trajectory: Trajectory | None = None,
        uid: str | None = None,
    ) -> str:
        """Keep a picture (3, H, W) in [0, 1] and its trajectory of one row; its id.

        Both are on disk when this returns; a kill leaves no picture without its trajectory.
        """
        _check(image, trajectory)
        check_text(prompt, "a prompt")
        check_text(model, "a model's name")
        with _said(self.folder), self._part(".safetensors") as states, self._part(".png") as png:
            digest = None
            if trajectory is not None:
                trajectory.save(states)
                digest = _sha256(states.read_bytes())
            notes = asdict(Picture(prompt, model, seed, digest, uid))
            save_png(image[None], png, {NOTES: json.dumps(notes)})
            picture = _sha256(png.read_bytes())
            if trajectory is not None:
                self._place(states, picture)
            self._place(png, picture)
        return picture

    def path(self, picture: str, suffix: str = ".png") -> Path:
        """Where a picture's file is, or would be; anything but an id is refused."""
        if not isinstance(picture, str) or not ID.fullmatch(picture):
            raise DiffalignError(f"{picture!r} is not the id of a picture (64 digits 0-9 and a-f).")
        return self.folder / f"{picture}{suffix}"

    def read(self, picture: str) -> bytes:
        """The PNG, checked: never anything but what was added under this id."""
        content = self._bytes(self.path(picture))
        if _sha256(content) != picture:
            raise RunError(f"{self.path(picture)} is damaged: its content is not what was added.")
        return content

    def info(self, picture: str) -> Picture:
        """Prompt, model and seed."""
        with Image.open(BytesIO(self.read(picture))) as image:
            return Picture(**json.loads(image.info[NOTES]))

    def image(self, picture: str) -> Tensor:
        """(3, H, W) in [0, 1]."""
        with Image.open(BytesIO(self.read(picture))) as image:
            pixels: Tensor = pil_to_tensor(image)
        return pixels / 255

    def trajectory(self, picture: str) -> Trajectory:
        """How the picture was sampled, one row; an error where nobody kept that."""
        expected = self.info(picture).trajectory
        if expected is None:
            raise DiffalignError(
                f"D3PO needs trajectories, and the picture {picture[:12]}… has none: it was made to judge models, or "
                "elsewhere, so nobody knows how it was sampled. Train from votes on pictures made to train from."
            )
        path = self.path(picture, ".safetensors")
        if _sha256(self._bytes(path)) != expected:
            raise RunError(f"{path} is damaged: its content is not what was added.")
        try:
            return Trajectory.load(path)
        except SafetensorError as error:
            raise RunError(f"{path} cannot be read: {error}") from error

    def trajectories(self, pictures: Sequence[str]) -> Trajectory:
        """One batch of these pictures' trajectories; a group is one prompt from one x_T."""
        joined = Trajectory.cat([self.trajectory(picture) for picture in pictures])
        starts = [(p, _start(x)) for p, x in zip(joined.prompts, joined.states[:, 0], strict=True)]
        number = {start: n for n, start in enumerate(dict.fromkeys(starts))}
        joined.group = torch.tensor([number[start] for start in starts])
        return joined

    def touch(self, pictures: Sequence[str]) -> None:
        """Begin these pictures' time of grace anew; an error where one is missing.

        The picture comes last: where it is fresh, its trajectory is, too.
        """
        for picture in pictures:
            png = self.path(picture)
            try:
                with suppress(FileNotFoundError):
                    os.utime(self.path(picture, ".safetensors"), follow_symlinks=False)
                os.utime(png, follow_symlinks=False)
            except FileNotFoundError as error:
                raise _missing(png) from error
            except OSError as error:
                raise RunError(f"{png} cannot be kept for a vote: {error.strerror or error}.") from error

    def _bytes(self, path: Path) -> bytes:
        """The content of a file that is no link."""
        try:
            with open(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
                return file.read()
        except FileNotFoundError as error:
            raise _missing(path) from error
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror or error}.") from error

    @contextmanager
    def _part(self, suffix: str) -> Iterator[Path]:
        """A file that is written beside its place."""
        handle, name = tempfile.mkstemp(suffix, ".part-", self.folder)
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def _place(self, part: Path, picture: str) -> None:
        """Give a complete file its name, on disk before this returns."""
        part.chmod(0o644)
        sync(part)
        part.replace(self.path(picture, part.suffix))
        sync(self.folder)


@contextmanager
def _said(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into an error that says how to go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"could not keep a picture in {folder}: {error}. What was kept before is untouched; free some space (or "
            "see to the folder's permissions), then try again."
        ) from error


def _check(image: Tensor, trajectory: Trajectory | None) -> None:
    if image.ndim != 3 or len(image) != 3 or not bool(((image >= 0) & (image <= 1)).all()):
        raise DiffalignError(f"a picture is (3, H, W) with values in [0, 1], not {tuple(image.shape)}.")
    if trajectory is not None and len(trajectory) != 1:
        raise DiffalignError(
            f"a picture has a trajectory of one row, not {len(trajectory)}; cut it: batch[[row]]."
        )


def _missing(path: Path) -> RunError:
    return RunError(
        f"the picture file {path} is missing: it was removed, or the folder is that of another store. Votes are "
        "untouched; restore the file, or leave out the votes on it."
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _start(states: Tensor) -> bytes:
    return states.contiguous().view(torch.uint8).numpy().tobytes()
