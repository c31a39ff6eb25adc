"""The folder of a run: config, metrics, samples, summary. Only the main process writes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from diffalign.errors import DiffalignError, RunError
from diffalign.ranks import is_main

SINGLE = ("base", "final")
"""The tags whose pictures are also saved one by one, for the report's before and after."""


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run."""

    path: Path

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> RunFolder:
        """A new folder with its resolved config; refuses one that holds anything worth keeping."""
        folder = cls(Path(path))
        if any(folder.checkpoints.glob("[!.]*")) or (folder.path / "summary.json").exists():
            raise DiffalignError(
                f"{folder.path} already holds a run. Choose another folder with --out, "
                f"or go on with it: diffalign train --resume {folder.path}"
            )
        with _writing(folder.path):
            folder.samples.mkdir(parents=True, exist_ok=True)
            folder.checkpoints.mkdir(exist_ok=True)
            _write(folder._metrics, "")
        folder.write_config(config)
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of an existing run."""
        folder = cls(Path(path))
        if not (folder.path / "config.yaml").is_file():
            raise DiffalignError(
                f"{folder.path} is not a run folder (it has no config.yaml). "
                "Give the folder that `diffalign train` printed, such as runs/emoji-d3po."
            )
        return folder

    def discard(self) -> None:
        """Remove what `create` made, where nothing else has come to it."""
        if is_main() and not self.rows():
            for made in (self._metrics, self.path / "config.yaml"):
                made.unlink(missing_ok=True)
            with suppress(OSError):  # somebody else's files are in it
                for folder in (self.samples, self.checkpoints, self.path):
                    folder.rmdir()

    @property
    def samples(self) -> Path:
        """Where pictures go."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def config(self) -> dict[str, Any]:
        """The resolved config, as it was written."""
        path = self.path / "config.yaml"
        try:
            loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise DiffalignError(
                f"{path} is not readable YAML: {error}. Put back what the run wrote."
            ) from error
        if not isinstance(loaded, dict):
            raise DiffalignError(f"{path} holds no config, but {loaded!r}. Put back what the run wrote.")
        return loaded

    def write_config(self, config: Mapping[str, Any]) -> None:
        """config.yaml: all keys of the run with their values."""
        with _writing(self.path):
            _write(
                self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
            )

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one round's metrics and flush them to disk; other processes than the main one do nothing."""
        if not is_main():
            return
        with _writing(self._metrics), self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(row)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """All rounds' metrics; a line that a kill cut short is left out."""
        if not self._metrics.exists():
            return []
        lines = self._metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def cut(self, rounds: int) -> None:
        """Forget the rows of later rounds than the first `rounds`, before a resumed run writes them again."""
        kept = "".join(json.dumps(row) + "\n" for row in self.rows() if row["round"] < rounds)
        with _writing(self._metrics):
            _write(self._metrics, kept)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """summary.json: what the run reached and what it cost."""
        with _writing(self.path):
            _write(self.path / "summary.json", json.dumps(_finite(summary), indent=2) + "\n")

    def summary(self) -> dict[str, Any]:
        """summary.json, or an empty dict where the run has not ended."""
        path = self.path / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def write_calibration(self, found: Mapping[str, Any]) -> None:
        """calibration.json: what the untuned model scores."""
        with _writing(self.path):
            _write(self.path / "calibration.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")

    def calibration(self) -> dict[str, Any]:
        """calibration.json, or an empty dict where nothing was measured yet."""
        path = self.path / "calibration.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def prompts(self) -> list[str]:
        """The held-out prompts in the order of the saved samples."""
        path = self.samples / "prompts.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def save_samples(self, tag: str, images: Tensor, prompts: Sequence[str]) -> None:
        """Pictures (B, 3, H, W) or video (B, F, 3, H, W) in [0, 1]: a grid, and one by one for base and final."""
        video = images if images.ndim == 5 else images[:, None]
        with _writing(self.samples):
            self.samples.mkdir(parents=True, exist_ok=True)
            _write(self.samples / "prompts.json", json.dumps(list(prompts), indent=1, ensure_ascii=False))
            middle = video[:, video.shape[1] // 2]
            save_png(
                make_grid(middle, nrow=8, padding=2, pad_value=1.0)[None], self.samples / f"grid-{tag}.png"
            )
            for index, frames in enumerate(video if tag in SINGLE else ()):
                save_png(frames, self.samples / f"{index:03d}-{tag}.png")


def save_png(frames: Tensor, path: Path) -> None:
    """One picture (1, 3, H, W), or an animation (F, 3, H, W) as an animated PNG of 8 frames a second."""
    pixels = frames.detach().float().cpu().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    first, *rest = [Image.fromarray(each) for each in pixels]
    more: dict[str, Any] = (
        {"save_all": True, "append_images": rest, "duration": 125, "loop": 0} if rest else {}
    )
    first.save(path, **more)


def _write(path: Path, text: str) -> None:
    """Replace a file whole: readers see the old text or the new one."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _finite(value: Any) -> Any:
    """JSON has no nan and no infinity: they become null."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {key: _finite(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_finite(inner) for inner in value]
    return value


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"could not write {path}: {error}. The last checkpoint is untouched; "
            "free some space (or see to the folder's permissions), then resume."
        ) from error
