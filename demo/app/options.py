"""What the app is started with, refused at once where it cannot be safe."""

from __future__ import annotations

import ipaddress
import shlex
from dataclasses import dataclass
from pathlib import Path

from diffalign.errors import DiffalignError

LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
OWN_SETTINGS = {"emoji-turbo": ("steps=1", "guidance_scale=1.0", "rule=consistency")}
"""Packaged models that are not drawn from as the config says."""


@dataclass(frozen=True)
class Options:
    """What may be chosen on the command line.

    config: whose model, steps, rule, guidance and LoRA are drawn with. train: what Align runs instead
    of the config, in words in which {votes} is the store. votes: a file, or a URL of PostgreSQL with
    `pictures`, its folder. judges: models, run folders or LoRA folders. candidates: pictures that are
    drawn for a pair, of which the two most different are shown. runs: where Align trains, and where what
    was learned from these votes before is found, unless `fresh`.
    """

    model: str | None = None
    config: str = "emoji-d3po-votes"
    judges: tuple[str, ...] = ()
    candidates: int = 8
    votes: str = "votes.db"
    pictures: str | None = None
    host: str = "127.0.0.1"
    port: int = 7860
    auth: Path | None = None
    training: bool = True
    train: str | None = None
    runs: Path = Path("runs")
    fresh: bool = False

    def check(self) -> None:
        """Refuse to listen to other machines without users and passwords, and pairs of one picture."""
        if self.candidates < 2:
            raise DiffalignError(f"a pair is chosen from 2 pictures or more, not from {self.candidates}.")
        if self.auth is None and not is_loopback(self.host):
            raise DiffalignError(
                f"--host {self.host} can be reached from other machines, where anybody could vote and train. Make a "
                "file of users and passwords first: `diffalign demo-user NAME --auth users.json`, then add --auth "
                "users.json here; or leave --host out."
            )

    def training_words(self) -> list[str]:
        """What is given to `diffalign train`."""
        if self.train:
            return [word.replace("{votes}", self.votes) for word in shlex.split(self.train)]
        kept = [f"pictures={self.pictures}"] if self.pictures else []
        return [self.config, *self.words(), f"preferences={self.votes}", *kept]

    def words(self, model: str | None = None) -> list[str]:
        """The overrides of the config that make it draw with a model, by default with the app's own."""
        model = model or self.model
        return [f"model={model}", *OWN_SETTINGS.get(model, ())] if model else []


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
