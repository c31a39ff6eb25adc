"""Makes the table of docs/results.md: every packaged emoji run with three seeds; finished runs are kept.

    python benchmarks/results.py [--out runs/results] [--seeds 0 1 2] [CONFIG ...]

Interrupt it and call it again: unfinished runs are resumed from their checkpoints.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tables import MACHINE, interval, table, write

CONFIGS = ["emoji-d3po", "emoji-prdp", "emoji-ddpo"]
NAMES = [
    "config", "seed", "gain of the trained reward (sd)", "win rate", "gain of prompt match (sd)",
    "diversity", "denoiser calls", "reward calls", "seconds",
]  # fmt: skip


def run(config: str, seed: int, out: Path) -> dict[str, Any]:
    """The summary of one run, trained or resumed if it is not there yet."""
    folder = out / f"{config}-{seed}"
    if not (folder / "summary.json").exists():
        started = any((folder / "checkpoints").glob("round-*"))
        arguments = ["--resume", str(folder)] if started else ["--out", str(folder)]
        subprocess.run(
            [sys.executable, "-m", "diffalign", "train", config, f"seed={seed}", *arguments], check=True
        )
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def row(config: str, seed: int, s: dict[str, Any]) -> list[str]:
    """One line of the table."""
    other = next(iter(s["heldout_other"].values()))
    return [
        config, str(seed), interval(s["gain_sd"], s["gain_sd_ci"]), interval(s["win_rate"], s["win_rate_ci"]),
        interval(other["gain_sd"], other["gain_sd_ci"]),
        f"{s['diversity']['base']:.3f} → {s['diversity']['trained']:.3f}",
        f"{s['denoiser_calls']:,}", f"{s['reward_calls']:,}", f"{s['seconds']:.0f}",
    ]  # fmt: skip


def main() -> None:
    """Run everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("configs", nargs="*", default=CONFIGS)
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    rows = [row(c, seed, run(c, seed, args.out)) for c in args.configs for seed in args.seeds]
    write("table", f"{table(NAMES, rows)}\n\n{MACHINE} Intervals: paired bootstrap, 95 %.")


if __name__ == "__main__":
    main()
