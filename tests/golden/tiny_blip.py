"""ImageReward on its golden's small weights, through the files its users have: the official ones."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import torch
from golden import store

from diffalign_rewards import imagereward as module

VISION = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
WORDS = 30522


def imagereward(folder: Path) -> module.ImageReward:
    """The picture tower's sizes are replaced while the checkpoint is loaded; nothing else differs from real use."""
    golden = store.load("imagereward")
    torch.save(golden.weights, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(golden.facts["config"]))
    vocabulary = write_vocabulary(folder / "vocab.txt", golden.facts["vocabulary"])
    with patch.dict(module.VISION, VISION):
        return module.ImageReward(path=str(folder), vocabulary=vocabulary)


def write_vocabulary(path: Path, known: dict[str, int]) -> str:
    """BERT's vocabulary file; words that the golden's prompts do not use are replaced."""
    words = [f"[unused{place}]" for place in range(WORDS)]
    for word, place in known.items():
        words[place] = word
    path.write_text("\n".join([*words, ""]), encoding="utf-8")
    return str(path)
