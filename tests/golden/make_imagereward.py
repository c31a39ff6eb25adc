"""Makes imagereward.safetensors: scores by the image-reward package on a small random model.

Run in a throw-away environment with image-reward 1.5, transformers 4.30.2, diffusers 0.21.4, accelerate 0.21.0,
datasets 2.14.7, huggingface_hub 0.17.3, timm 0.6.13, fairscale 0.4.13, clip-anytorch 2.6.0, torch, torchvision,
numpy below 2, pyarrow below 15, fsspec 2023.10.0, pillow below 11 and setuptools below 70, and with the vocabulary
of bert-base-uncased:

    python tests/golden/make_imagereward.py PATH/TO/vocab.txt

The package has the sizes of its picture tower and head in its code; they are replaced by small ones. Its own
loader reads the checkpoint.
"""

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import ImageReward
import store
import torch
from ImageReward.models.BLIP import blip_pretrain
from ImageReward.models.BLIP.vit import VisionTransformer

VISION = {"embed_dim": 64, "depth": 2, "num_heads": 1, "img_size": 224, "patch_size": 16}
TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": 30524, "max_position_embeddings": 40, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "pad_token_id": 0, "type_vocab_size": 2, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02, "add_cross_attention": True, "model_type": "bert",
}  # fmt: skip
FAINT = {"blip.visual_encoder.patch_embed": 32, "blip.visual_encoder.pos_embed": 32}
"""What the first norm of the picture tower sees."""


def main(vocabulary: str) -> None:
    official = sys.modules["ImageReward.ImageReward"]
    words, pictures = Path(vocabulary).read_text(), store.awkward()
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(
            blip_pretrain, "create_vit", lambda *_: (VisionTransformer(**VISION), VISION["embed_dim"])
        ),
        patch.object(official, "MLP", lambda _, mlp=official.MLP: mlp(TEXT["hidden_size"])),
    ):
        os.chdir(folder)  # the package asks for the tokenizer `bert-base-uncased`, which may be a folder
        Path("bert-base-uncased").mkdir()
        Path("bert-base-uncased", "vocab.txt").write_text(words)
        Path("med_config.json").write_text(json.dumps(TEXT))
        torch.manual_seed(0)
        model = official.ImageReward("med_config.json")
        used, weights = coarse(model)
        torch.save(weights, "ImageReward.pt")
        model = ImageReward.load("ImageReward.pt", "cpu", med_config="med_config.json")
        scores = torch.tensor([[model.score(prompt, p) for prompt in store.PROMPTS] for p in pictures])
    lines = words.split("\n")
    facts = {"config": TEXT, "vocabulary": {lines[place]: place for place in used}}
    source = f"image-reward {version('image-reward')}, transformers {version('transformers')}"
    store.save("imagereward", weights, pictures, {"score": scores}, source=source, **facts)
    print(scores)


def coarse(model: torch.nn.Module) -> tuple[list[int], dict]:
    """The tokens that the prompts use, and weights that can be stored, of which each has its effect."""
    ids = model.blip.tokenizer(store.PROMPTS, padding="max_length", truncation=True, max_length=35).input_ids
    used = sorted(
        {token for row in ids for token in row} | {100, 103}
    )  # [UNK] and [MASK], which it must know
    for layer in model.mlp.layers.children():
        if isinstance(layer, torch.nn.Linear):
            layer.reset_parameters()
    store.vary(model, FAINT)
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("position_ids")}
    return used, store.coarsen(state, {"blip.text_encoder.embeddings.word_embeddings.weight": used}, 3)


if __name__ == "__main__":
    main(sys.argv[1])
