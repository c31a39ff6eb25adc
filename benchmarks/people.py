"""How far people's votes alone move the model: a scripted voter in the app, then training on what it voted.

    python benchmarks/people.py [--out runs/people] [--seeds 0 1 2] [--votes 100]

For every voter and seed: starts `diffalign demo` with an empty store, looks at the pictures that it serves,
votes over HTTP, stops it, and runs `diffalign train emoji-d3po-votes`. The voters' taste is the style score
of the emoji CLIP, of which the trainer learns nothing but the choices. Writes the table of docs/results.md.
Interrupt it and call it again: votes that are in are kept, finished runs too.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import torch
from PIL import Image
from tables import MACHINE, interval, table, write
from torchvision.transforms.functional import pil_to_tensor

from diffalign.preferences import Store
from diffalign.registry import reward

COMMAND = [sys.executable, "-m", "diffalign"]
NAMES = [
    "the voter likes", "seed", "votes for the picture that it likes more", "gain of that taste (sd)",
    "win rate", "gain of prompt match (sd)", "diversity", "minutes of voting", "minutes of training",
]  # fmt: skip


@dataclass(frozen=True)
class Voter:
    """Prefers the picture with the higher sign * style, and errs in the other cases."""

    name: str
    folder: str
    sign: float
    right: float = 1.0

    def choose(self, styles: torch.Tensor, dice: random.Random) -> str:
        """a or b, for the styles (2,) of the two pictures."""
        first = bool(self.sign * (styles[0] - styles[1]) > 0)
        return "a" if first == (dice.random() < self.right) else "b"


VOTERS = (
    Voter("3d", "3d", 1),
    Voter("flat", "flat", -1),
    Voter("3d, right in 80 %", "3d-80", 1, right=0.8),
)


@contextmanager
def app(folder: Path) -> Iterator[httpx.Client]:
    """A client of the app, which runs as it is started by hand."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["demo", "--port", port, "--votes", str(folder / "votes.db"), "--runs", str(folder / "app-runs")]
    with (folder / "app.log").open("ab") as log:
        server = subprocess.Popen([*COMMAND, *words], stdout=log, stderr=log)
    patient = httpx.HTTPTransport(retries=3)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=patient, timeout=60) as client:
        try:
            wait_for(client, server)
            yield client
        finally:
            server.terminate()
            server.wait()


def wait_for(client: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    """Until the app answers."""
    while server.poll() is None:
        try:
            client.get("/api/counts").raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.5)
    raise RuntimeError("the app did not start; its log says why")


@torch.no_grad()
def vote(voter: Voter, seed: int, wanted: int, folder: Path) -> None:
    """Vote until so many votes are in."""
    taste, dice = reward("emoji_clip", score="style"), random.Random(f"{voter.name} {seed}")
    with app(folder) as client:
        while client.get("/api/counts").json()["votes"] < wanted:
            answer = client.get("/api/pair")
            if answer.status_code == 503:  # still being drawn
                continue
            pair = answer.raise_for_status().json()
            images = torch.stack([picture(client, name) for name in pair["pictures"]])
            choice = voter.choose(taste(images, [pair["prompt"]] * 2), dice)
            body = {"showing": pair["showing"], "choice": choice, "token": uuid4().hex}
            client.post("/api/vote", json=body).raise_for_status()


def picture(client: httpx.Client, name: str) -> torch.Tensor:
    """(3, H, W) in [0, 1], as it is served."""
    served = client.get(f"/api/picture/{name}").raise_for_status().content
    pixels: torch.Tensor = pil_to_tensor(Image.open(BytesIO(served))) / 255
    return pixels


def run(voter: Voter, seed: int, wanted: int, folder: Path) -> dict[str, Any]:
    """The summary of training on the votes; they are cast and trained on where that has not been done yet."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = folder / "run"
    if not (trained / "summary.json").exists():
        vote(voter, seed, wanted, folder)
        fresh = [
            "emoji-d3po-votes",
            f"preferences={folder / 'votes.db'}",
            f"seed={seed}",
            "--out",
            str(trained),
        ]
        started = any((trained / "checkpoints").glob("round-*"))
        subprocess.run([*COMMAND, "train", *(["--resume", str(trained)] if started else fresh)], check=True)
    summary: dict[str, Any] = json.loads((trained / "summary.json").read_text())
    return summary


def row(voter: Voter, seed: int, summary: dict[str, Any], folder: Path) -> list[str]:
    """One line of the table."""
    style, match = summary["heldout_other"]["style"], summary["heldout_other"]["match"]
    right, minutes = votes_of(voter, folder)
    return [
        voter.name, str(seed), right,
        interval(voter.sign * style["gain_sd"], sorted(voter.sign * end for end in style["gain_sd_ci"])),
        interval(*flipped(voter, style["win_rate"], style["win_rate_ci"])),
        interval(match["gain_sd"], match["gain_sd_ci"]),
        f"{summary['diversity']['base']:.3f} → {summary['diversity']['trained']:.3f}",
        f"{minutes:.1f}", f"{summary['seconds'] / 60:.1f}",
    ]  # fmt: skip


def flipped(voter: Voter, rate: float, bounds: list[float]) -> tuple[float, list[float]]:
    """How often the style went where the voter wants it."""
    return (rate, bounds) if voter.sign > 0 else (1 - rate, [1 - bounds[1], 1 - bounds[0]])


@torch.no_grad()
def votes_of(voter: Voter, folder: Path) -> tuple[str, float]:
    """("right of all", minutes from the first vote to the last), from the store."""
    store, taste = Store.open(folder / "votes.db"), reward("emoji_clip", score="style")
    votes, right = store.votes(), 0
    for cast in votes:
        ((winner, loser),) = cast.pairs()
        images = torch.stack([store.pictures.image(name) for name in (winner, loser)])
        won, lost = (voter.sign * taste(images, [cast.prompt] * 2)).tolist()
        right += won > lost
    return f"{right} of {len(votes)}", (votes[-1].time - votes[0].time).total_seconds() / 60


def main() -> None:
    """Run everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/people"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--votes", type=int, default=100)
    args = parser.parse_args()
    rows = []
    for voter, seed in product(VOTERS, args.seeds):
        folder = args.out / f"{voter.folder}-{seed}"
        rows.append(row(voter, seed, run(voter, seed, args.votes, folder), folder))
    write("people", f"{table(NAMES, rows)}\n\n{MACHINE} Intervals: paired bootstrap, 95 %.")


if __name__ == "__main__":
    main()
