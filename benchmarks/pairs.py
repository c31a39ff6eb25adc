"""How much two pictures that are shown together differ in style, by how many were drawn to choose them from.

    OMP_NUM_THREADS=1 python benchmarks/pairs.py [--prompts 100]

Draws as the app does; prints the mean absolute difference of the emoji CLIP's style score, with its interval.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from diffalign import Policy, prompts
from diffalign.registry import reward
from diffalign.seeds import derive
from diffalign.steps import DDIM
from diffalign.training.evaluate import bootstrap
from diffalign_demo.app.artist import Artist

SIZES = (2, 4, 8)


@torch.no_grad()
def difference(artist: Artist, style: Any, text: str, candidates: int) -> float:
    """Of the pair that is shown of a prompt; the first candidates are the same whatever their number."""
    _, images, _ = artist.pairs([text], [derive(0, text)], candidates)
    one, other = style(images, [text] * 2).tolist()
    return abs(one - other)


def main() -> None:
    """Print a line for every number of candidates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100)
    texts = prompts.load("emoji-train", parser.parse_args().prompts)
    policy = Policy.from_pretrained("emoji", steps=10, guidance_scale=3.0, lora=False)
    artist, style = Artist("emoji", policy, DDIM(quiet_last=2)), reward("emoji_clip", score="style")
    for candidates in SIZES:
        each = torch.tensor([difference(artist, style, text, candidates) for text in texts])
        low, high = bootstrap(each)
        print(f"{candidates} pictures: {float(each.mean()):.3f} [{low:.3f}, {high:.3f}]", flush=True)


if __name__ == "__main__":
    main()
