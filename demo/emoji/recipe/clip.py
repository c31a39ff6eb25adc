"""Step `clip`: a small open_clip model of emoji pictures and captions, the offline judge."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from . import data, words
from .fit import Schedule, fit
from .vae import pixels

NAMES = 64
SCHEDULE = Schedule(steps=2000, rate=1e-3, decay=0.99, weight_decay=0.1)
STYLES = ("flat", "3d")
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def config(vocabulary: int) -> dict[str, object]:
    """The architecture in open_clip's own terms: a ResNet for pictures, a causal transformer for text."""
    vision = {"image_size": 64, "layers": [1, 2, 2, 1], "width": 16, "head_width": 64}
    text = {"context_length": words.LENGTH, "vocab_size": vocabulary, "width": 128, "heads": 4, "layers": 2,
            "pool_type": "eos", "eos_id": 2, "hf_tokenizer_name": "here"}
    return {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text}


@dataclass
class Set:
    """Pictures and what is said of them: (N, 3, 64, 64) twice, original and seen through the VAE."""

    originals: Tensor
    reconstructions: Tensor
    names: list[str]
    styles: list[str]

    def part(self, keep: list[int]) -> Set:
        """The rows with these indices."""
        return Set(self.originals[keep], self.reconstructions[keep], [self.names[i] for i in keep],
                   [self.styles[i] for i in keep])


@torch.no_grad()
def load_set(out: Path) -> tuple[Set, Set]:
    """Pictures of known names, and those of the `clip_test` names."""
    images, rows = data.arrays(out / "pictures.parquet")
    originals = pixels(torch.from_numpy(images))
    vae = AutoencoderKL.from_pretrained(out / "base/vae")
    seen = torch.cat([vae(part).sample for part in originals.split(64)]).clamp(-1, 1)
    everything = Set(originals, seen, [row["name"] for row in rows], [row["style"] for row in rows])
    unseen = [i for i, row in enumerate(rows) if row["split"] == "clip_test"]
    return everything.part(sorted(set(range(len(rows))) - set(unseen))), everything.part(unseen)


def augment(known: Set, index: list[int], generator: torch.Generator) -> Tensor:
    """Pictures as a generator might draw them: half through the VAE, scaled, shifted, blurred, noisy."""
    draw = torch.rand(len(index), 6, generator=generator)
    choice = draw[:, 0, None, None, None] < 0.5
    batch = torch.where(choice, known.originals[index], known.reconstructions[index])
    scale, shift = 1 + 0.3 * (draw[:, 1] - 0.5), 0.2 * (draw[:, 2:4] - 0.5)
    affine = torch.zeros(len(index), 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = scale
    affine[:, :, 2] = shift
    grid = F.affine_grid(affine, list(batch.shape), align_corners=False)
    batch = F.grid_sample(batch - 1, grid, align_corners=False) + 1  # outside is white
    batch = torch.lerp(batch, F.avg_pool2d(batch, 3, 1, 1), draw[:, 4, None, None, None])
    return batch + 0.1 * draw[:, 5, None, None, None] * torch.randn(batch.shape, generator=generator)


def loss(model: open_clip.CLIP, tokenizer: words.PreTrainedTokenizerFast, known: Set, pictures: dict[str, list[int]],
         generator: torch.Generator) -> Tensor:
    """Contrastive cross-entropy in both directions with several right answers per row.

    A batch is all pictures of some names against the captions ⟨name⟩, flat ⟨name⟩ and 3d ⟨name⟩.
    """
    chosen = [list(pictures)[i] for i in torch.randperm(len(pictures), generator=generator)[:NAMES]]
    index = [i for name in chosen for i in pictures[name]]
    captions = [(style, name) for name in chosen for style in ("", *STYLES)]
    right = torch.tensor([[known.names[i] == name and style in ("", known.styles[i]) for style, name in captions]
                          for i in index]).float()
    images, texts, scale = model(augment(known, index, generator), encode(tokenizer, captions))
    logits = scale.clamp(max=100) * images @ texts.T
    asked = right.sum(0) > 0  # a style of which there is no picture is only ever a wrong answer
    return 0.5 * (F.cross_entropy(logits.float(), right / right.sum(1, keepdim=True))
                  + F.cross_entropy(logits.T[asked].float(), (right / right.sum(0)).T[asked]))


def encode(tokenizer: words.PreTrainedTokenizerFast, captions: list[tuple[str, str]]) -> Tensor:
    """(style, name) captions as (N, 12) ids."""
    texts = [f"{style} {name}" for style, name in captions]
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def train(out: Path, work: Path, schedule: Schedule = SCHEDULE) -> None:
    """Trains on `out/pictures.parquet`, writes the open_clip folder `out/clip` and `out/clip/card.json`."""
    torch.manual_seed(schedule.seed)
    known, unseen = load_set(out)
    pictures: dict[str, list[int]] = {}
    for i, name in enumerate(known.names):
        pictures.setdefault(name, []).append(i)
    tokenizer = words.tokenizer(words.vocabulary([*STYLES, *known.names, *unseen.names]))
    model = open_clip.CLIP(**config(len(tokenizer)))
    fit(model, lambda generator: loss(model, tokenizer, known, pictures, generator), schedule, work / "clip")
    save(model, tokenizer, out / "clip")
    (out / "clip/card.json").write_text(json.dumps(evaluate(model.eval(), tokenizer, unseen), indent=2) + "\n")


def save(model: open_clip.CLIP, tokenizer: words.PreTrainedTokenizerFast, folder: Path) -> None:
    """A folder that `open_clip.create_model("local-dir:…")` loads: config, fp16 weights, tokenizer."""
    tokenizer.save_pretrained(folder)
    settings = {"model_cfg": config(len(tokenizer)), "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "open_clip_model.safetensors")


@torch.no_grad()
def evaluate(model: open_clip.CLIP, tokenizer: words.PreTrainedTokenizerFast, unseen: Set) -> dict[str, float]:
    """Retrieval among the pictures and captions of unseen names of one style, and style recognition."""
    images = model.encode_image(unseen.originals, normalize=True)
    texts = {style: model.encode_text(encode(tokenizer, [(style, name) for name in unseen.names]), normalize=True)
             for style in STYLES}
    gap = (images * (texts["3d"] - texts["flat"])).sum(1)
    scores = {"style": float(((gap > 0) == torch.tensor([s == "3d" for s in unseen.styles])).float().mean())}
    for style in STYLES:
        own = torch.tensor([i for i, s in enumerate(unseen.styles) if s == style])
        similar = images[own] @ texts[style][own].T
        for way, table in (("image_to_text", similar), ("text_to_image", similar.T)):
            rank = (table > table.diagonal()[:, None]).sum(1)
            scores |= {f"{style}_{way}_top{k}": float((rank < k).float().mean()) for k in (1, 5)}
        scores[f"{style}_names"] = len(own)
    return scores
