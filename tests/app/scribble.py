"""A stand-in for a slow model: draws noise at once, so that tests of the app's plumbing need no denoiser.

python tests/app/scribble.py FOLDER PORT [--auth FILE] [--no-training]
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from diffalign.errors import DiffalignError
from diffalign.preferences import Store
from diffalign_demo.app.artist import Artist
from diffalign_demo.app.members import Members
from diffalign_demo.app.options import Options
from diffalign_demo.app.server import application
from diffalign_demo.app.session import Session
from diffalign_demo.app.studio import Studio
from diffalign_demo.app.turns import Turns

PROMPTS = ["red apple", "green pear", "blue plum", "hot dog"]


class Scribbler(Artist):
    """Draws 16 x 16 noise that depends on the seed and its name."""

    def __init__(self, title: str) -> None:
        self.title, self.trained, self.turns = title, "", Turns()
        self.policy: Any = SimpleNamespace(check_prompts=self._check)

    @property
    def trainable(self) -> bool:
        return False

    def pairs(self, prompts: Any, seeds: Any, candidates: int = 2) -> Any:
        images = torch.stack([self._noise(seed, side) for seed in seeds for side in range(2)])
        return self.name, images, SimpleNamespace(prompts=[p for p in prompts for _ in range(2)])

    def draw(self, prompts: Any, seeds: Any, w: float = 1.0) -> Any:
        return self.name, torch.stack([self._noise(seed, hash(self.title) % 97) for seed in seeds])

    def _noise(self, seed: int, side: int) -> torch.Tensor:
        return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed % 2**40 + side))

    def _check(self, prompts: list[str]) -> None:
        if "unspeakable" in prompts[0]:
            raise DiffalignError("this model cannot read that prompt.")


def session(folder: Path, judges: tuple[str, ...] = (), busy_seconds: float = 30.0, **more: Any) -> Session:
    """A session whose store lies in a folder, and whose models draw noise."""
    options = Options(votes=str(folder / "votes.db"), runs=folder / "runs", **more)
    store = Store.open(folder / "votes.db", busy_seconds=busy_seconds)
    studio = Studio(store, PROMPTS, Scribbler("scribble"), [Scribbler(name) for name in judges])
    return Session(options, store, studio, ["palm tree"])


def main(folder: str, port: str, *flags: str) -> None:
    import uvicorn

    auth = Path(flags[flags.index("--auth") + 1]) if "--auth" in flags else None
    made = session(Path(folder), ("other",), port=int(port), training="--no-training" not in flags)
    app = application(made, Members(auth) if auth else None)
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
