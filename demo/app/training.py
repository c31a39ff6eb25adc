"""A training run as a process of its own, followed through its folder: it may be stopped, and cannot take us along."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffalign import registry
from diffalign.errors import DiffalignError
from diffalign.folders import checkpoint
from diffalign.folders.runfolder import RunFolder

PATIENCE = 30.0
"""Seconds in which a run that is stopped finishes what it is writing."""


@dataclass(frozen=True)
class Progress:
    """state: "none", "running", "done", "stopped" or "failed"; words: the end of what the run said."""

    state: str = "none"
    done: int = 0
    rounds: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    words: str = ""


class Training:
    """`words` are those of `diffalign train`; every run gets a new folder."""

    def __init__(self, words: Sequence[str], runs: Path) -> None:
        self.words = list(words)
        self._runs, self._lock = Path(runs), threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self.folder: RunFolder | None = None

    def command(self, out: Path, more: Sequence[str] = ()) -> list[str]:
        """What is run, with further overrides."""
        name, *overrides = self.words
        if name not in registry.configs() and not Path(name).is_file():
            raise DiffalignError(
                f"there is no config {name!r} to train with; start the app with --train CONFIG, one of those in "
                "`diffalign list` or a YAML file."
            )
        return [sys.executable, "-m", "diffalign", "train", name, *overrides, *more, "--out", str(out)]

    def start(self, more: Sequence[str] = ()) -> None:
        """Start a run, with further overrides; an error where one is running."""
        with self._lock:
            if self.running:
                raise DiffalignError("a training run is going on; stop it first, or wait for its end.")
            out = self._free()
            command = self.command(out, more)
            self._runs.mkdir(parents=True, exist_ok=True)
            with self._log(out).open("wb") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                )
            self.folder, self._stopped = RunFolder(out), False

    def stop(self) -> None:
        """Ask the run to stop, as Ctrl-C does, and end it where it does not."""
        with self._lock:
            if not self.running or self._process is None:
                return
            self._stopped = True
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @property
    def running(self) -> bool:
        """Whether a run is going on."""
        return self._process is not None and self._process.poll() is None

    def progress(self) -> Progress:
        """How far the run is."""
        if self.folder is None or self._process is None:
            return Progress()
        rows = self.folder.rows()
        rounds = (
            int(self.folder.config().get("rounds", 0)) if (self.folder.path / "config.yaml").exists() else 0
        )
        words = self._log(self.folder.path).read_text("utf-8", "replace")[-2000:]
        return Progress(self._state(), len(rows), rounds, rows, words)

    def newest(self) -> Path | None:
        """The newest weights: the finished LoRA, else the one that people are shown, else a checkpoint."""
        if self.folder is None:
            return None
        done, live = self.folder.path / "lora", sorted((self.folder.path / "live").glob("round-*"))
        found = [path for path in (done, *live[-1:]) if path.is_dir()]
        return found[0] if found else checkpoint.latest(self.folder.checkpoints)

    def _state(self) -> str:
        if self.running or self._process is None:
            return "running"
        if self._stopped:
            return "stopped"
        return "failed" if self._process.returncode else "done"

    def _free(self) -> Path:
        names = (self._runs / f"{Path(self.words[0]).stem}-{n}" for n in range(1, 100_000))
        return next(path for path in names if not path.exists())

    def _log(self, out: Path) -> Path:
        return out.with_name(f"{out.name}.log")
