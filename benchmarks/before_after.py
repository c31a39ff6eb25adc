"""Makes the README's picture from a run: held-out prompts before (above) and after (below).

python benchmarks/before_after.py runs/emoji-d3po docs/img/quickstart.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

SIZE, GAP, COUNT = 96, 6, 10


def strip(run: Path, tag: str, indices: list[int]) -> Image.Image:
    """The pictures of some held-out prompts in a row."""
    row = Image.new("RGB", (len(indices) * (SIZE + GAP) - GAP, SIZE), "white")
    for place, index in enumerate(indices):
        picture = Image.open(run / "samples" / f"{index:03d}-{tag}.png").resize(
            (SIZE, SIZE), Image.Resampling.LANCZOS
        )
        row.paste(picture, (place * (SIZE + GAP), 0))
    return row


def main() -> None:
    """Every sixth held-out prompt, so that nobody picked them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    indices = list(range(0, 6 * COUNT, 6))
    before, after = (strip(args.run, tag, indices) for tag in ("base", "final"))
    both = Image.new("RGB", (before.width, 2 * SIZE + GAP), "white")
    both.paste(before, (0, 0))
    both.paste(after, (0, SIZE + GAP))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    both.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
