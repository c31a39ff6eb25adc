"""The folder of a search: pictures before and after, the noise they are made of, what they score and cost.

A prompt is finished when its result is there, which is written last; every process writes those of its prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import load_file, save_file
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.folders.checkpoint import encode
from diffalign.folders.folder import Folder
from diffalign.folders.saving import finite, replacing, save_png, write_text, writing
from diffalign.ranks import is_main

PARTS = ("results", "pictures", "latents")


@dataclass(frozen=True)
class SearchFolder(Folder):
    """Paths and files of one search; prompts are numbered from 0."""

    kind: ClassVar[str] = "search"
    example: ClassVar[str] = "the folder that `diffalign search` printed, such as searches/emoji-reno"

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> SearchFolder:
        """A new folder with its resolved config; refuses one that holds a run or a search."""
        folder = cls(Path(path))
        if (folder.path / "config.yaml").exists():
            raise DiffalignError(
                f"{folder.path} already holds a run or a search. Choose another folder with --out, "
                f"or go on with it: diffalign search --resume {folder.path}"
            )
        with writing(folder.path):
            for part in PARTS:
                (folder.path / part).mkdir(parents=True, exist_ok=True)
        folder.write_config(config)
        return folder

    def discard(self) -> None:
        """Remove what `create` made, where nothing else has come to it."""
        if is_main() and not self.finished():
            (self.path / "config.yaml").unlink(missing_ok=True)
            for made in (*(self.path / part for part in PARTS), self.path):
                with suppress(OSError):  # something is in it
                    made.rmdir()

    def finished(self) -> set[int]:
        """The numbers of the prompts that are done."""
        return {int(file.stem) for file in (self.path / "results").glob("[0-9]*.json")}

    def results(self) -> list[dict[str, Any]]:
        """What was found for the finished prompts, in their order."""
        files = (self.path / "results" / f"{number:04d}.json" for number in sorted(self.finished()))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def tensors(self, result: Mapping[str, Any]) -> dict[str, Tensor]:
        """Noise and latents of a result, and the tensors of its extras."""
        return load_file(self.path / result["latents"])

    def write(
        self, number: int, result: dict[str, Any], pictures: Mapping[str, Tensor], notes: Mapping[str, str],
        **tensors: Tensor,
    ) -> None:  # fmt: skip
        """Keep one prompt's pictures (3, H, W) or videos (F, 3, H, W) by tag, its tensors, and then its result.

        "best" is the tag of what was found, which gets no suffix; notes go into the files of pictures.
        """
        name = f"{number:04d}-{_slug(result['prompt'])}".strip("-")
        with writing(self.path):
            files = {tag: f"pictures/{name}{'' if tag == 'best' else f'-{tag}'}.png" for tag in pictures}
            for tag, picture in pictures.items():
                with replacing(self.path / files[tag]) as part:
                    save_png(picture if picture.ndim == 4 else picture[None], part, notes)
            every = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            row = {"number": number, **encode(finite(result), "", every)}
            with replacing(self.path / "latents" / f"{name}.safetensors") as part:
                save_file(every, part)
            row |= {"pictures": files, "latents": f"latents/{name}.safetensors"}
            write_text(
                self.path / "results" / f"{number:04d}.json", json.dumps(row, indent=1, ensure_ascii=False)
            )

    def extra(self, number: int, name: str) -> Path:
        """Where something of a prompt that keeps itself goes."""
        return self.path / "extras" / f"{number:04d}-{name}"

    def collect(self) -> list[dict[str, Any]]:
        """All results, which are also written into one file, results.jsonl, a line each without paths and extras."""
        rows = self.results()
        short = [{k: v for k, v in row.items() if k not in ("path", "extras")} for row in rows]
        with writing(self.path):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in short)
            write_text(self.path / "results.jsonl", lines)
        return rows


def _slug(prompt: str) -> str:
    """A prompt as a part of a file's name."""
    return re.sub(r"[^\w]+", "-", prompt.lower())[:40].strip("-")
