"""A reward in another Python: `diffalign reward serve` started there, and stopped with this process.

For packages that cannot share an environment. The other one needs torch, numpy, pillow, fastapi, uvicorn
and what the reward itself imports; diffalign's own code is lent to it, its dependencies are not.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.errors import DiffalignError, RunError
from diffalign.prompts import package_roots
from diffalign.serving import remote

LENT = ("diffalign", "diffalign_rewards", "diffalign_demo")
"""The packages that the other interpreter gets from here."""
OURS = {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}
"""Variables that would tie it to this environment, or make it one of this launch's processes."""
START_SECONDS, CALL_SECONDS, STOP_SECONDS = 900.0, 600.0, 5.0
"""What loading the reward may take, one request of it, and its end."""


@dataclass(frozen=True)
class Process:
    """The server's process and its folder: the lent packages, the log, and where it says its port."""

    python: str
    popen: subprocess.Popen[bytes]
    folder: Path

    def port(self) -> int:
        """Where it listens, once the reward is loaded."""
        end, said = time.monotonic() + START_SECONDS, self.folder / "said.json"
        while not said.exists():
            if self.popen.poll() is not None or time.monotonic() > end:
                raise DiffalignError(f"{self.python} did not start to serve the reward{self._last_words()}")
            time.sleep(0.05)
        answer = json.loads(said.read_text())
        if "error" in answer:
            raise DiffalignError(f"{self.python}: {answer['error']}")
        return int(answer["port"])

    def check(self) -> None:
        """Raise where nobody is left to be asked again."""
        if self.popen.poll() is not None:
            raise RunError(
                f"the process of {self.python} that scored has ended{self._last_words()}\nNothing that was saved is "
                "lost: see to it, then resume the run."
            )

    def stop(self) -> None:
        """End it, by force if need be, and remove its folder."""
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError):  # it has ended before it read everything
            self.popen.stdin.close()  # which it takes for our end
        try:
            self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _last_words(self) -> str:
        code = self.popen.poll()
        text = (self.folder / "log").read_bytes()[-2000:].decode("utf-8", "replace").strip()
        return (
            f" ({'still running' if code is None else f'exit code {code}'}). The end of its output:\n{text}"
        )


def start(python: str, name: str, arguments: Mapping[str, Any]) -> remote.Remote:
    """The reward `name` in the interpreter `python`; `close` ends it, as does the end of this process."""
    token = secrets.token_urlsafe()
    process = launch(python, {"name": name, "arguments": dict(arguments), "token": token})
    try:
        url = f"http://127.0.0.1:{process.port()}"
        reward = remote.connect(url, token=token, timeout=CALL_SECONDS, check=process.check)
    except BaseException:
        process.stop()
        raise
    reward.stop = weakref.finalize(reward, process.stop)
    return reward


def launch(python: str, asked: Mapping[str, Any]) -> Process:
    """The process, told through its standard input what to serve, where others cannot read it."""
    folder = lend()
    try:
        with open(folder / "log", "wb") as log:
            popen = subprocess.Popen(
                [os.path.expanduser(python), "-m", "diffalign.serving.isolated_server", str(folder)],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment(folder),
                start_new_session=True,  # Ctrl-C lets a run finish its round, which needs the scores
            )  # fmt: skip
    except OSError as error:
        shutil.rmtree(folder)
        raise DiffalignError(
            f"{python} could not be started: {error}. `python` is the path of an interpreter, such as "
            "/path/to/venv/bin/python."
        ) from error
    _tell(popen, asked)
    return Process(python, popen, folder)


def lend() -> Path:
    """A new folder with a `path` in it that holds links to our packages, and nothing else of ours."""
    folder = Path(tempfile.mkdtemp(prefix="diffalign-reward-"))
    (folder / "path").mkdir()
    for package in LENT:
        for root in package_roots(package):
            (folder / "path" / package).symlink_to(root.resolve(), target_is_directory=True)
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Our variables without those that would bring our packages along, or the current folder's."""
    kept = {key: value for key, value in os.environ.items() if key not in OURS}
    return kept | {"PYTHONPATH": str(folder / "path"), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


def _tell(popen: subprocess.Popen[bytes], asked: Mapping[str, Any]) -> None:
    assert popen.stdin is not None
    try:
        popen.stdin.write(json.dumps(asked).encode() + b"\n")
        popen.stdin.flush()
    except BrokenPipeError:
        pass  # it has ended already; whoever waits for its port says how
