"""The learned rewards on the goldens' small weights, through the files their users have: the official ones.

open_clip's architectures are shrunk while a checkpoint is loaded; nothing else differs from real use.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import open_clip
import torch
from golden import heads, store, tokens
from safetensors.torch import save_file

from diffalign_rewards.aesthetic import Aesthetic
from diffalign_rewards.clip import Clip
from diffalign_rewards.hpsv2 import HPSv2
from diffalign_rewards.pickscore import PickScore

SMALL_L = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@contextmanager
def architecture(name: str, config: dict) -> Iterator[None]:
    """open_clip's `name` has these sizes within the block."""
    with patch.dict(open_clip.factory._MODEL_CONFIGS, {name: config}):
        yield


def archive(weights: dict[str, torch.Tensor], path: Path) -> str:
    """A TorchScript archive of half precision weights and three numbers, as OpenAI publishes it."""
    root = torch.nn.Module()
    numbers = dict.fromkeys(("input_resolution", "context_length", "vocab_size"), torch.tensor(0))
    for name, value in {**weights, **numbers}.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, torch.nn.Module())
            module = module._modules[parent]
        module.register_buffer(leaf, value.half() if value.is_floating_point() else value)
    torch.jit.script(root).save(str(path))
    return str(path)


def clip(folder: Path, **arguments: Any) -> Clip:
    with architecture("ViT-L-14-quickgelu", SMALL_L):
        return Clip(path=archive(store.load("clip").weights, folder / "ViT-L-14.pt"), **arguments)


def aesthetic(folder: Path) -> Aesthetic:
    torch.save(heads.aesthetic(), folder / "head.pth")
    tower = archive(store.load("aesthetic").weights, folder / "ViT-L-14.pt")
    with architecture("ViT-L-14-quickgelu", {**SMALL_L, "embed_dim": 768}):
        return Aesthetic(head=str(folder / "head.pth"), tower=tower)


def hpsv2(folder: Path, **arguments: Any) -> HPSv2:
    golden = store.load("hpsv2")
    torch.save({"state_dict": golden.weights}, folder / "HPS_v2_compressed.pt")
    with architecture("ViT-H-14", golden.facts["config"]):
        return HPSv2(path=str(folder / "HPS_v2_compressed.pt"), **arguments)


def pickscore(folder: Path) -> PickScore:
    golden = store.load("pickscore")
    tokens.write(folder, Path(open_clip.tokenizer.default_bpe()))
    config = {"architectures": ["CLIPModel"], "model_type": "clip", **golden.facts["config"]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(golden.weights, folder / "model.safetensors", {"format": "pt"})
    return PickScore(path=str(folder))


REWARDS = {"clip": clip, "aesthetic": aesthetic, "hpsv2": hpsv2, "pickscore": pickscore}
