"""Makes clip.safetensors: logits by OpenAI's CLIP package on a small random model.

Run in a throw-away environment with torch, torchvision and clip-anytorch 2.6.0:

    python tests/golden/make_clip.py
"""

import tempfile
from importlib.metadata import version
from pathlib import Path

import clip
import store
import torch

SHAPE = {
    "embed_dim": 64, "image_resolution": 224, "vision_layers": 2, "vision_width": 64, "vision_patch_size": 16,
    "context_length": 77, "vocab_size": 49408, "transformer_width": 64, "transformer_heads": 1,
    "transformer_layers": 1,
}  # fmt: skip


def checkpoint(gain: float, **shape: int) -> dict:
    """The weights of a random CLIP, as OpenAI names them."""
    torch.manual_seed(0)
    model, ids = clip.model.CLIP(**SHAPE | shape), clip.tokenize(store.PROMPTS, truncate=True)
    model.logit_scale.data.fill_(4.625)  # exp is about 100, as in the published models
    store.vary(model, store.OPENAI)
    return store.coarsen(model.state_dict(), {"token_embedding.weight": ids.unique().tolist()}, gain)


def load(weights: dict) -> tuple:
    """The official loader: the model and its preprocessing."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights, path := str(Path(folder, "clip.pt")))
        return clip.load(path, device="cpu")


@torch.no_grad()
def main() -> None:
    weights, pictures = checkpoint(2), store.awkward()
    model, preprocess = load(weights)
    images = torch.stack([preprocess(picture) for picture in pictures])
    logits, _ = model(images, clip.tokenize(store.PROMPTS, truncate=True))
    scores = {"logit": logits, "cosine": logits / model.logit_scale.exp()}
    store.save("clip", weights, pictures, scores, source=f"clip-anytorch {version('clip-anytorch')}")
    print(scores)


if __name__ == "__main__":
    main()
