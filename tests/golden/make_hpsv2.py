"""Makes hpsv2.safetensors: scores by the hpsv2 package on a small random model.

Run in a throw-away environment with torch, torchvision 0.17 or later and hpsv2 1.2.0, into whose folder
src/open_clip open_clip's bpe_simple_vocab_16e6.txt.gz was copied (the wheel lacks it):

    python tests/golden/make_hpsv2.py

The scores "aliased" are those of the same code with the default that torchvision had before 0.17.
"""

import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import store
import torch
from hpsv2 import img_score
from hpsv2.src.open_clip import factory, tokenize, transform
from torchvision.transforms import functional

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def initialise() -> None:
    """What the package does first, without the published weights, which the checkpoint replaces anyway."""
    create = img_score.create_model_and_transforms
    with patch.object(img_score, "create_model_and_transforms", lambda name, _, **k: create(name, None, **k)):
        img_score.initialize_model()


def main() -> None:
    torch.manual_seed(0)
    factory._MODEL_CONFIGS["ViT-H-14"] = CONFIG
    initialise()
    used = {"token_embedding.weight": tokenize(store.PROMPTS).unique().tolist()}
    store.vary(img_score.model_dict["model"], store.OPENAI)
    weights = store.coarsen(img_score.model_dict["model"].state_dict(), used, 2)
    pictures, aliased = store.awkward(), partial(functional.resize, antialias=False)
    with tempfile.TemporaryDirectory() as folder:
        torch.save({"state_dict": weights}, path := str(Path(folder, "HPS_v2_compressed.pt")))
        scores = {"score": score(pictures, path)}
        with patch.object(transform.F, "resize", aliased):
            scores["aliased"] = score(pictures, path)
    source = f"hpsv2 {version('hpsv2')}, torchvision {version('torchvision')}"
    store.save("hpsv2", weights, pictures, scores, source=source, config=CONFIG)
    print(scores)


def score(pictures: list, path: str) -> torch.Tensor:
    """Official scores of every picture (rows) for every prompt (columns)."""
    columns = [img_score.score(pictures, prompt, cp=path) for prompt in store.PROMPTS]
    return torch.tensor(columns).T


if __name__ == "__main__":
    main()
