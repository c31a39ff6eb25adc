"""The rewards at their real sizes with random weights, which take the time and memory that published ones take.

Made as users make them; only the reading of the published files is replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import open_clip
import torch
from transformers import CLIPConfig, CLIPModel

from diffalign import registry
from diffalign_rewards import _open_clip, imagereward
from diffalign_rewards.aesthetic import Head

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from golden import tokens

BERT_BASE = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "vocab_size": 30524, "max_position_embeddings": 512, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}  # fmt: skip
"""ImageReward's med_config.json."""

TOWERS = {
    "hidden_act": "gelu", "num_attention_heads": 16,
}  # fmt: skip
VIT_H = CLIPConfig(
    text_config={**TOWERS, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24},
    vision_config={
        **TOWERS, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "patch_size": 14
    },
    projection_dim=1024,
)  # fmt: skip
"""PickScore_v1's config.json."""


@contextmanager
def folder() -> Iterator[Path]:
    """A folder in which files of the right names lie, and within the block random weights are read from them."""
    with (
        TemporaryDirectory() as temporary,
        patch.object(_open_clip, "_read", lambda architecture, path: open_clip.create_model(architecture)),
        patch.object(imagereward, "load", lambda path: frozen(imagereward.Blip(BERT_BASE))),
        patch.object(CLIPModel, "from_pretrained", lambda *_, **__: (CLIPModel(VIT_H), {"missing_keys": []})),
    ):
        path = Path(temporary)
        torch.save(Head().state_dict(), path / "head.pth")
        for name in ("weights", "config.json", "model.safetensors", "ImageReward.pt", "med_config.json"):
            (path / name).touch()
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{k}" for k in range(30517))]
        (path / "vocab.txt").write_text("\n".join(words))
        tokens.write(path, Path(open_clip.tokenizer.default_bpe()))
        yield path


def frozen(model: torch.nn.Module) -> Any:
    """As the rewards keep their models."""
    return model.eval().requires_grad_(False)


LEARNED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "clip": lambda path: {"path": str(path / "weights")},
    "aesthetic": lambda path: {"tower": str(path / "weights"), "head": str(path / "head.pth")},
    "pickscore": lambda path: {"path": str(path)},
    "hpsv2": lambda path: {"path": str(path / "weights")},
    "imagereward": lambda path: {"path": str(path), "vocabulary": str(path / "vocab.txt")},
}
"""Arguments with which a reward finds the files of `folder`."""


def make(name: str, path: Path, **more: Any) -> Any:
    """A learned reward over the files of `folder`."""
    return registry.reward(name, **LEARNED[name](path), **more)
