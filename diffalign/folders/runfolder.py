"""The folder of a run: config, metrics, samples, summary. Only the main process writes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torchvision.utils import make_grid

from diffalign.errors import DiffalignError
from diffalign.folders.folder import Folder
from diffalign.folders.saving import finite, save_png, write_text, writing
from diffalign.ranks import is_main

SINGLE = ("base", "final")
"""The tags whose pictures are also saved one by one, for the report's before and after."""


@dataclass(frozen=True)
class RunFolder(Folder):
    """Paths and files of one run."""

    kind: ClassVar[str] = "run"
    example: ClassVar[str] = "the folder that `diffalign train` printed, such as runs/emoji-d3po"

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> RunFolder:
        """A new folder with its resolved config; refuses one that holds anything worth keeping."""
        folder = cls(Path(path))
        if any(folder.checkpoints.glob("[!.]*")) or (folder.path / "summary.json").exists():
            raise DiffalignError(
                f"{folder.path} already holds a run. Choose another folder with --out, "
                f"or go on with it: diffalign train --resume {folder.path}"
            )
        with writing(folder.path):
            folder.samples.mkdir(parents=True, exist_ok=True)
            folder.checkpoints.mkdir(exist_ok=True)
            write_text(folder._metrics, "")
        folder.write_config(config)
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

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one round's metrics and flush them to disk; other processes than the main one do nothing."""
        if not is_main():
            return
        with writing(self._metrics), self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row)) + "\n")
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
        with writing(self._metrics):
            write_text(self._metrics, kept)

    def prompts(self) -> list[str]:
        """The held-out prompts in the order of the saved samples."""
        path = self.samples / "prompts.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def save_samples(self, tag: str, images: Tensor, prompts: Sequence[str]) -> None:
        """Pictures (B, 3, H, W) or video (B, F, 3, H, W) in [0, 1]: a grid, and one by one for base and final."""
        video = images if images.ndim == 5 else images[:, None]
        with writing(self.samples):
            self.samples.mkdir(parents=True, exist_ok=True)
            write_text(self.samples / "prompts.json", json.dumps(list(prompts), indent=1, ensure_ascii=False))
            middle = video[:, video.shape[1] // 2]
            save_png(
                make_grid(middle, nrow=8, padding=2, pad_value=1.0)[None], self.samples / f"grid-{tag}.png"
            )
            for index, frames in enumerate(video if tag in SINGLE else ()):
                save_png(frames, self.samples / f"{index:03d}-{tag}.png")
