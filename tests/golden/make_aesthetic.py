"""Makes aesthetic.safetensors: scores by LAION's aesthetic predictor on a small random CLIP and a random head.

Run in the environment of make_clip.py with the official script of
christophschuhmann/improved-aesthetic-predictor at commit 6934dd8:

    python tests/golden/make_aesthetic.py PATH/TO/simple_inference.py

The script scores one file as soon as it is run, on a GPU: its network and its `normalized` are taken
from it, and called in its order.
"""

import ast
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import heads
import numpy as np
import store
import torch
from make_clip import checkpoint, load


def official(path: str) -> SimpleNamespace:
    """The classes and functions of a script, without what it does when it is run."""
    tree = ast.parse(Path(path).read_text())
    kept = [node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    scope = {"pl": SimpleNamespace(LightningModule=torch.nn.Module), "nn": torch.nn, "np": np}
    exec(compile(ast.Module(kept, []), path, "exec"), scope)
    return SimpleNamespace(**scope)


@torch.no_grad()
def main(path: str) -> None:
    weights, pictures, script = checkpoint(2, embed_dim=768), store.awkward(), official(path)
    model, preprocess = load(weights)
    head = script.MLP(768).eval()
    head.load_state_dict(heads.aesthetic())
    features = torch.cat([model.encode_image(preprocess(picture)[None]) for picture in pictures])
    scores = head(torch.from_numpy(script.normalized(features.numpy())).float())
    source = f"improved-aesthetic-predictor 6934dd8, clip-anytorch {version('clip-anytorch')}"
    store.save("aesthetic", weights, pictures, {"score": scores[:, 0]}, source=source)
    print(scores[:, 0])


if __name__ == "__main__":
    main(sys.argv[1])
