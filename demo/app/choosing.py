"""Which prompt, which two models and which two pictures come next: at random, or where an answer tells most.

Dimensions: M models, P pairs.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

from diffalign.preferences import Score, Vote, bradley_terry
from diffalign.preferences.scores import NORMAL_95, PRIOR

Mode = Literal["train", "judge"]
How = Literal["random", "informed"]

WORTH_TRAINING = 100
"""Decided votes with which the packaged model is meant to be aligned; more make the taste clearer still."""
WORTH_JUDGING = 60
"""Decided votes per further model: a pair's score is then known to about ± 0.5 logits (1.96 * 2 / sqrt(60))."""


@dataclass(frozen=True)
class Kind:
    """What a user wants to compare: pairs of one model to train it, or of two models to judge them."""

    mode: Mode = "train"
    how: How = "informed"


def next_prompt(prompts: Sequence[str], votes: Iterable[Vote], how: How, pick: random.Random) -> str:
    """Any prompt, or one of those with the fewest decided votes."""
    if how == "random":
        return pick.choice(prompts)
    decided = Counter(vote.prompt for vote in votes if vote.pairs())
    fewest = min(decided[prompt] for prompt in prompts)
    return pick.choice([prompt for prompt in prompts if decided[prompt] == fewest])


def next_models(
    models: Sequence[str], votes: Iterable[Vote], how: How, pick: random.Random
) -> tuple[str, str]:
    """Any two models, or those whose comparison is expected to shrink the scores' variance most.

    To first order that is P (1 - P) times the variance of the two scores' difference, P = how often
    one is expected to win (the Fisher information of one answer under Bradley-Terry).
    """
    pairs = list(combinations(models, 2))
    pick.shuffle(pairs)
    if how == "random":
        return pairs[0]
    known = {score.model: score for score in bradley_terry(votes)}

    def gain(pair: tuple[str, str]) -> float:
        scores = [known[model].score if model in known else 0.0 for model in pair]
        variance = sum(_deviation(known, model) ** 2 for model in pair)
        win = 1 / (1 + math.exp(scores[1] - scores[0]))
        return win * (1 - win) * variance

    return max(pairs, key=gain)


def apart(latents: Tensor, candidates: int) -> Tensor:
    """Of latents (P * candidates, ...), the rows (2P,) of the two of each pair's candidates that differ most.

    What somebody likes can only show where two pictures differ; of eight, the two most different differ about
    twice as much in style as the first two do (docs/results.md).
    """
    each = latents.float().reshape(-1, candidates, latents[0].numel())
    farthest = torch.cdist(each, each).flatten(1).argmax(1)
    two = torch.stack([farthest // candidates, farthest % candidates], 1)
    return (two + candidates * torch.arange(len(each), device=two.device)[:, None]).flatten()


def worth_having(mode: Mode, models: int) -> int:
    """How many votes are worth collecting; see WORTH_TRAINING and WORTH_JUDGING."""
    return WORTH_TRAINING if mode == "train" else WORTH_JUDGING * max(1, models - 1)


def _deviation(known: Mapping[str, Score], model: str) -> float:
    return (known[model].high - known[model].low) / 2 / NORMAL_95 if model in known else PRIOR
