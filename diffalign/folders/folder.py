"""What the folders of runs and of searches have in common: a config, a summary, a calibration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml

from diffalign.errors import DiffalignError
from diffalign.folders.saving import finite, write_text, writing


@dataclass(frozen=True)
class Folder:
    """Paths and files of one run; `kind` and `example` say which folders are of this kind."""

    path: Path

    kind: ClassVar[str]
    example: ClassVar[str]

    @classmethod
    def open(cls, path: Path) -> Self:
        """The folder of what was begun before."""
        folder = cls(Path(path))
        if not (folder.path / "config.yaml").is_file():
            raise DiffalignError(
                f"{folder.path} is not a {cls.kind} folder (it has no config.yaml). Give {cls.example}."
            )
        return folder

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
        """config.yaml: all keys with their values."""
        with writing(self.path):
            text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
            write_text(self.path / "config.yaml", text)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """summary.json: what was reached and what it cost."""
        with writing(self.path):
            write_text(self.path / "summary.json", json.dumps(finite(summary), indent=2) + "\n")

    def summary(self) -> dict[str, Any]:
        """summary.json, or an empty dict where the end was not reached."""
        return self._json("summary.json")

    def write_calibration(self, found: Mapping[str, Any]) -> None:
        """calibration.json: what the untuned model scores."""
        with writing(self.path):
            text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
            write_text(self.path / "calibration.json", text)

    def calibration(self) -> dict[str, Any]:
        """calibration.json, or an empty dict where nothing was measured yet."""
        return self._json("calibration.json")

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
