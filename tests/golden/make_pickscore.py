"""Makes pickscore.safetensors: scores by the code of PickScore's README on a small random model.

Run in a throw-away environment with transformers 4.27.3, torch, numpy below 2 and pillow below 11, the
README of yuvalkirstain/PickScore at commit f79607f and the vocabulary file of open_clip:

    python tests/golden/make_pickscore.py PATH/TO/README.md PATH/TO/bpe_simple_vocab_16e6.txt.gz

The README's code is run as it is, except that it runs on the CPU, loads the small model, and stops before
the softmax that turns scores into probabilities.
"""

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import store
import tokens
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizerFast,
    __version__,
)

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = {
    "text_config": {**TOWER, "hidden_act": "gelu", "vocab_size": 49408, "max_position_embeddings": 77},
    "vision_config": {**TOWER, "hidden_act": "gelu", "image_size": 224, "patch_size": 14},
    "projection_dim": 32, "logit_scale_init_value": 4.625,
}  # fmt: skip
FAINT = {
    "vision_model.embeddings.patch": 32, "vision_model.embeddings": 16, "text_model.embeddings": 4,
}  # fmt: skip
"""What the first norm of each tower sees."""


def official(readme: str, folder: str) -> Callable:
    """`calc_probs` of the README, for the model of a folder, without the softmax."""
    code = re.search(r"```python\n(# import\n.*?)pil_images =", Path(readme).read_text(), re.DOTALL)[1]
    changes = {
        '"cuda"': '"cpu"', "torch.softmax(scores, dim=-1)": "scores",
        '"laion/CLIP-ViT-H-14-laion2B-s32B-b79K"': repr(folder), '"yuvalkirstain/PickScore_v1"': repr(folder),
    }  # fmt: skip
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    exec(code, scope := {})
    return scope["calc_probs"]


def main(readme: str, merges: str) -> None:
    pictures = store.awkward()
    with tempfile.TemporaryDirectory() as folder:
        tokens.write(Path(folder), Path(merges))
        tokenizer = CLIPTokenizerFast.from_pretrained(folder)
        CLIPProcessor(CLIPImageProcessor(), tokenizer).save_pretrained(folder)
        torch.manual_seed(0)
        model, ids = CLIPModel(CLIPConfig(**CONFIG)), tokenizer(store.PROMPTS, truncation=True, max_length=77)
        store.vary(model, FAINT)
        used = {
            "text_model.embeddings.token_embedding.weight": sorted({i for row in ids.input_ids for i in row})
        }
        state = {k: v for k, v in model.state_dict().items() if not k.endswith("position_ids")}
        weights = store.coarsen(state, used, 4)
        model.load_state_dict(weights, strict=False)
        model.save_pretrained(folder)
        score = official(readme, folder)
        scores = torch.tensor([score(prompt, pictures) for prompt in store.PROMPTS]).T
    source = f"README of PickScore f79607f, transformers {__version__}"
    store.save("pickscore", weights, pictures, {"score": scores}, source=source, config=CONFIG)
    print(scores)


if __name__ == "__main__":
    main(*sys.argv[1:])
