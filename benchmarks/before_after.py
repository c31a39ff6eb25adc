"""Makes a picture from runs of one model: held-out prompts before (above), and after each run (below).

python benchmarks/before_after.py runs/emoji-d3po --out docs/img/quickstart.png
python benchmarks/before_after.py runs/people/3d-0/run runs/people/flat-0/run --out docs/img/people.png
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
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    indices = list(range(0, 6 * COUNT, 6))
    rows = [strip(args.runs[0], "base", indices), *(strip(run, "final", indices) for run in args.runs)]
    sheet = Image.new("RGB", (rows[0].width, len(rows) * (SIZE + GAP) - GAP), "white")
    for place, row in enumerate(rows):
        sheet.paste(row, (0, place * (SIZE + GAP)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
