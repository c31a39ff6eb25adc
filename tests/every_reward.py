"""Constructs every built-in reward and scores with it; prints their names and where diffalign was imported from.

The learned ones are made of the goldens' small weights, in the official formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from golden import tiny, tiny_blip

import diffalign
from diffalign import registry
from diffalign.authoring.cost import cost

LEARNED = {
    **tiny.REWARDS,
    "hpsv2.1": partial(tiny.hpsv2, version="2.1"),
    "imagereward": tiny_blip.imagereward,
}
ASKED = {"encoder": "emoji_clip", "reward": "emoji_clip", "reference": "emoji", "references": "emoji"}
"""Arguments without a default, and what is given for them."""


def made() -> Iterator[tuple[str, Any]]:
    """Each reward and its name."""
    for name in sorted({*registry.built_in_rewards(), *registry.ALIASES}):
        if name in LEARNED:
            with TemporaryDirectory() as folder:
                yield name, LEARNED[name](Path(folder))
        else:
            parameters = registry.parameters(registry.reward_maker(name)).values()
            given = {p.name: ASKED[p.name] for p in parameters if p.default is p.empty}
            yield name, registry.reward(name, **given)


if __name__ == "__main__":
    print(diffalign.__file__)
    for name, reward in made():
        cost(reward, side=64)
        print(name)
