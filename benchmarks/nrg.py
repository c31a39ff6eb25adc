"""What noise-aware guidance does to the emoji model: scores by strength, beside the unguided base, and the pictures.

python benchmarks/nrg.py style:10 style:30 match:10 match:30 --out nrg.png
One initial noise a prompt, the same for every strength; 20 deterministic steps, classifier-free guidance 3.
The picture has a row a strength, the first one unguided.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torchvision.utils import save_image

from diffalign.guided import Guided
from diffalign.policy import Policy
from diffalign.search.best_of_n import BestOfN
from diffalign.steps import ODE
from diffalign_demo.emoji import prompts
from diffalign_rewards.emoji_clip import EmojiClip
from diffalign_rewards.emoji_noisy_clip import EmojiNoisyClip


def interval(change: torch.Tensor) -> str:
    """Mean and 95 % interval of paired differences (P,)."""
    return f"{change.mean():+.3f} ± {1.96 * change.std() / len(change) ** 0.5:.3f}"


def main() -> None:
    """One line, and one row of pictures, a strength."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "strengths", nargs="+", metavar="SCORE:W", help="what to follow, match or style, and how much"
    )
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    policy = Policy.from_pretrained("emoji", steps=20, guidance_scale=3.0, lora=False)
    texts, base, rows = prompts("heldout")[: args.prompts], {}, []
    judges = {score: EmojiClip(score) for score in ("match", "style")}
    for strength in ("match:0", *args.strengths):
        score, w = strength.split(":")
        led = Guided(policy, EmojiNoisyClip(score), float(w))
        found = BestOfN(1)(led, texts, judges["match"], rule=ODE(), seed=args.seed, batch=len(texts))
        with torch.no_grad():
            rows.append(policy.decode(found.latents))
            scores = {name: judge(rows[-1], texts) for name, judge in judges.items()}
        base = base or scores
        said = (
            f"{name} {value.mean():.3f} ({interval(value - base[name])})" for name, value in scores.items()
        )
        print(f"{strength}: {', '.join(said)}; {found.costs[0]}", flush=True)
        save_image(torch.cat(rows), args.out, nrow=len(texts), padding=1, pad_value=1)


if __name__ == "__main__":
    main()
