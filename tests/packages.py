"""Packages built and installed while the tests run, offline, into environments that see the running one's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHIPPED = {"diffalign": "diffalign"} | {
    folder: f"diffalign_{folder}" for folder in ("rewards", "configs", "demo")
}
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_CACHE_DIR": "1"}
"""pip's way to say `--no-build-isolation` in the environment is a 0."""


def tracked() -> list[str]:
    """The files that ship."""
    listed = subprocess.run(
        ["git", "ls-files", *SHIPPED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [path for path in listed.stdout.splitlines() if (ROOT / path).exists()]


def copy_source(folder: Path) -> Path:
    """The project as a release holds it."""
    for name in [*tracked(), "pyproject.toml", "README.md", "LICENSE", "NOTICE"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    return folder


class Environment:
    """A virtual environment of its own, which finds whatever it lacks where the tests run."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True, with_pip=False)
        self.bin = folder / "bin"
        (site,) = folder.glob("lib/python*/site-packages")
        seen = [path for path in sys.path if path.endswith("-packages")]
        (site / "running.pth").write_text("\n".join(seen))  # their own .pth, editable installs, are not read

    def run(self, *command: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment, as in a shell in which it was activated."""
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, **OFFLINE, "PATH": path, "PYTHONPATH": "", "COLUMNS": "200", **more}
        first = shutil.which(command[0], path=path) or command[0]
        return subprocess.run([first, *command[1:]], env=environment, cwd=cwd, capture_output=True, text=True)

    def python(self, *arguments: str, **more: Path) -> str:
        """What its Python prints."""
        done = self.run(str(self.bin / "python"), *arguments, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def install(self, *what: str) -> None:
        """pip install, offline."""
        self.python("-m", "pip", "install", "--quiet", "--ignore-installed", *what)


def package(folder: Path, name: str, rewards: dict[str, str], code: str, version: str = "1.0") -> Path:
    """The source of a package that offers rewards: name -> what carries it in its only module."""
    module = name.replace("-", "_")
    points = "\n".join(f'{reward} = "{module}:{place}"' for reward, place in rewards.items())
    folder.mkdir(parents=True)
    (folder / f"{module}.py").write_text(code)
    (folder / "pyproject.toml").write_text(
        f'[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\n'
        f'[project.entry-points."diffalign.rewards"]\n{points}\n[tool.setuptools]\npy-modules = ["{module}"]\n'
    )
    return folder
