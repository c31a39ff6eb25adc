"""Places for stores of votes, and pictures to vote on."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from sqlalchemy import Connection, Engine, create_engine, make_url, text

from diffalign.grid import Grid
from diffalign.models.conditioning import Batch, Conditioning, rows_layout
from diffalign.preferences import Store
from diffalign.preferences.database import parse
from diffalign.steps import DDIM
from diffalign.trajectory import Trajectory


@dataclass(frozen=True)
class Place:
    """A database and a folder of pictures, which stores are opened at."""

    where: str
    pictures: Path

    @property
    def sqlite(self) -> bool:
        return "://" not in self.where

    def open(self, **more: float) -> Store:
        return Store.open(self.where, pictures=self.pictures, **more)

    def engine(self) -> Engine:
        """A connection of somebody else."""
        return create_engine(parse(self.where))

    def hold(self, connection: Connection) -> None:
        """Keep others from writing until this connection's transaction ends."""
        how = "BEGIN IMMEDIATE" if self.sqlite else "LOCK TABLE showings IN ACCESS EXCLUSIVE MODE"
        connection.exec_driver_sql(how)


@contextmanager
def told(server: str) -> Iterator[Connection]:
    """A connection to a PostgreSQL on which every statement takes effect at once."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@contextmanager
def schema(server: str, pictures: Path, **settings: str) -> Iterator[Place]:
    """A place in a schema of its own, where every connection has these settings."""
    name = f"test_{uuid.uuid4().hex}"
    options = " ".join(f"-c{key}={value}" for key, value in ({"search_path": name} | settings).items())
    url = make_url(server).update_query_dict({"options": options})
    with told(server) as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
        yield Place(url.render_as_string(hide_password=False), pictures)
        connection.execute(text(f"DROP SCHEMA {name} CASCADE"))


def picture(store: Store, seed: int = 0, model: str = "base", prompt: str = "a cat", **more: object) -> str:
    """The id of a small picture that is different for every seed."""
    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return store.pictures.add(image, prompt=prompt, model=model, seed=seed, **more)


def pair(store: Store, seed: int = 0, models: tuple[str, str] = ("base", "base")) -> list[str]:
    """Two pictures of one prompt."""
    return [picture(store, 2 * seed + side, model) for side, model in enumerate(models)]


def voted(store: Store, user: str, choice: str, pictures: list[str], **more: object) -> None:
    """Show a pair to a user, who votes."""
    store.vote(store.show(user, pictures), user, choice, **more)


def trajectory(prompt: str = "a cat", x_T: int = 0, seed: int = 0, **other: object) -> Trajectory:
    """One row of a rollout whose initial noise is that of `x_T`."""

    def noise(seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    tree = {"prompt_embeds": noise(len(prompt), 1, 3, 2)}
    layout = rows_layout(tree, 1)
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    states = torch.cat([noise(x_T, 1, 1, 4, 2), noise(1000 + seed, 1, 2, 4, 2)], 1)
    fields = {
        "prompts": [prompt], "group": torch.tensor([7]), "seeds": [seed],
        "cond": Conditioning(Batch(layout, layout.flatten(tree), 1)), "states": states,
        "log_probs": noise(seed, 1, 2), "rule": DDIM(0.5), "guidance_scale": 3.0,
        "grid": Grid(torch.tensor([9, 5]), levels, (1 - levels**2).sqrt(), "epsilon"),
    }  # fmt: skip
    return Trajectory(**(fields | other))
