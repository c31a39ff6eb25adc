"""A training run as a process of its own, followed through its folder: it may be stopped, and cannot take us along."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffalign import registry
from diffalign.errors import DiffalignError
from diffalign.folders.runfolder import RunFolder
from diffalign_demo.app.runs import Runs, waits

PATIENCE, AT_ONCE = 30.0, 5.0
"""Seconds in which a run that is stopped finishes its round, and ends when told so again."""


@dataclass(frozen=True)
class Progress:
    """state: "none", "running", "done", "stopped", "failed", or "unfinished" where nobody goes on with the run.

    name: the run's folder. words: the end of what it said.
    """

    state: str = "none"
    name: str = ""
    done: int = 0
    rounds: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    words: str = ""


class Training:
    """`words` are those of `diffalign train`; every run gets a new folder.

    `folder` is the run that is followed: our last one, or one from elsewhere that waits for votes, or that
    wrote weights later. fresh: leave out what was trained before.
    """

    def __init__(self, words: Sequence[str], runs: Runs, fresh: bool = False) -> None:
        self.words = list(words)
        self._runs, self._lock = runs, threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._since, self._stopped = time.time() if fresh else 0.0, False
        self.folder: RunFolder | None = None
        self._started: RunFolder | None = None

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
            self._refuse_to_leave(self.folder)
            out = self._free()
            command = self.command(out, more)
            self._runs.folder.mkdir(parents=True, exist_ok=True)
            with self._log(out).open("wb") as log:
                self._process = (
                    subprocess.Popen(  # in a group of its own: the terminal's Ctrl-C is for the app
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            self.folder = self._started = RunFolder(out)
            self._since, self._stopped = time.time(), False

    def look(self) -> RunFolder | None:
        """The run to follow: where none of ours is going on, the one whose weights are newer than its start."""
        with self._lock:
            if not self.running:
                self.folder = self._runs.newest(self._since) or self.folder
            return self.folder

    def stop(self) -> None:
        """Stop the run as Ctrl-C does: after its round, or at once where it waits for votes."""
        with self._lock:
            if not self.running or self._process is None:
                return self._refuse_to_leave(self.folder)
            self._stopped = True
            for patience in (PATIENCE, AT_ONCE):
                self._process.send_signal(signal.SIGINT)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(patience)
                    return
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Stop our own run, if one is going on."""
        if self.running:
            self.stop()

    @property
    def running(self) -> bool:
        """Whether a run is going on."""
        return self._process is not None and self._process.poll() is None

    def progress(self) -> Progress:
        """How far the run is."""
        if (run := self.folder) is None:
            return Progress()
        rows = run.rows()
        rounds = int(run.config().get("rounds", 0)) if (run.path / "config.yaml").exists() else 0
        log = self._log(run.path)
        words = log.read_text("utf-8", "replace")[-2000:] if log.exists() else ""
        return Progress(self._state(run), run.path.name, len(rows), rounds, rows, words)

    def _state(self, run: RunFolder) -> str:
        if self._process is None or run != self._started:
            return "running" if waits(run) else "done" if (run.path / "lora").is_dir() else "unfinished"
        if self.running:
            return "running"
        if self._stopped:
            return "stopped"
        return "failed" if self._process.returncode else "done"

    def _refuse_to_leave(self, run: RunFolder | None) -> None:
        if run and run != self._started and waits(run):
            raise DiffalignError(
                f"{run.path} waits for votes, and was not started here; stop it where it was, with Ctrl-C."
            )

    def _free(self) -> Path:
        names = (self._runs.folder / f"{Path(self.words[0]).stem}-{n}" for n in range(1, 100_000))
        return next(path for path in names if not path.exists())

    def _log(self, out: Path) -> Path:
        return out.with_name(f"{out.name}.log")
