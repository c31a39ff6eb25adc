"""How much two pictures that are shown together differ in style, by how many were drawn to choose them from.

    OMP_NUM_THREADS=1 python benchmarks/pairs.py [--prompts 100]

Draws as the app does; the mean absolute difference of the emoji CLIP's style score, with its interval. Writes
the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

import torch
from tables import table, write

from diffalign import prompts
from diffalign.registry import reward
from diffalign.seeds import derive
from diffalign.training.evaluate import bootstrap
from diffalign_demo.app.artist import Artist, engage
from diffalign_demo.app.options import Options

SIZES = (2, 4, 8)
NAMES = ["pictures drawn for a pair", "difference of the two that are shown, in style"]


@torch.no_grad()
def difference(artist: Artist, style: Any, text: str, candidates: int) -> float:
    """Of the pair that is shown of a prompt; the first candidates are the same whatever their number."""
    _, images, _ = artist.pairs([text], [derive(0, text)], candidates)
    one, other = style(images, [text] * 2).tolist()
    return abs(one - other)


def row(artist: Artist, style: Any, texts: Sequence[str], candidates: int) -> list[str]:
    """One line of the table."""
    each = torch.tensor([difference(artist, style, text, candidates) for text in texts])
    low, high = bootstrap(each)
    return [str(candidates), f"{float(each.mean()):.3f} [{low:.3f}, {high:.3f}]"]


def main() -> None:
    """Measure every number of candidates and write the table of docs/results.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100)
    texts = random.Random(0).sample(prompts.load("emoji-train"), parser.parse_args().prompts)
    artist, style = engage(Options()), reward("emoji_clip", score="style")
    write("pairs", table(NAMES, [row(artist, style, texts, candidates) for candidates in SIZES]))


if __name__ == "__main__":
    main()
