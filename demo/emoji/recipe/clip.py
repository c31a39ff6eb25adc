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
from transformers import PreTrainedTokenizerFast

from . import data, words
from .fit import Schedule, fit
from .vae import pixels

NAMES = 64
SCHEDULE = Schedule(steps=1500, rate=1e-3, decay=0.99, weight_decay=0.1)
STYLES = ("flat", "3d")
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def config(vocabulary: int) -> dict[str, object]:
    """The architecture in open_clip's own terms: a ResNet for pictures, a causal transformer for text."""
    vision = {"image_size": 64, "layers": [1, 2, 2, 1], "width": 16, "head_width": 64}
    text = {
        "context_length": words.LENGTH,
        "vocab_size": vocabulary,
        "width": 128,
        "heads": 4,
        "layers": 2,
        "pool_type": "eos",
        "eos_id": 2,
        "hf_tokenizer_name": "here",
    }
    return {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text}


@dataclass
class Set:
    """Pictures (N, 3, 64, 64) in [−1, 1] and what is said of them."""

    pictures: Tensor
    names: list[str]
    styles: list[str]


def load_set(path: Path, unseen: bool) -> Set:
    """Pictures of the `clip_test` names, or those of all other names, of a `pictures.parquet`."""
    images, rows = data.arrays(path)
    keep = [i for i, row in enumerate(rows) if (row["split"] == "clip_test") == unseen]
    names, styles = ([rows[i][key] for i in keep] for key in ("name", "style"))
    return Set(pixels(torch.from_numpy(images[keep])), names, styles)


@torch.no_grad()
def through(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures as the autoencoder shows them."""
    return torch.cat([vae(part).sample for part in torch.split(pictures, 64)]).clamp(-1, 1)


def augment(originals: Tensor, blurred: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures as a generator might draw them: half through the VAE, scaled, shifted, blurred, noisy."""
    draw = torch.rand(len(originals), 6, generator=generator)
    batch = torch.where(draw[:, 0, None, None, None] < 0.5, originals, blurred)
    scale, shift = 1 + 0.3 * (draw[:, 1] - 0.5), 0.2 * (draw[:, 2:4] - 0.5)
    affine = torch.zeros(len(batch), 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = scale
    affine[:, :, 2] = shift
    grid = F.affine_grid(affine, list(batch.shape), align_corners=False)
    batch = F.grid_sample(batch - 1, grid, align_corners=False) + 1  # outside is white
    batch = torch.lerp(batch, F.avg_pool2d(batch, 3, 1, 1), draw[:, 4, None, None, None])
    return batch + 0.1 * draw[:, 5, None, None, None] * torch.randn(batch.shape, generator=generator)


class Batches:
    """Draws all pictures of some names, and the captions ⟨name⟩, flat ⟨name⟩ and 3d ⟨name⟩ of each."""

    def __init__(self, known: Set, blurred: Tensor, tokenizer: PreTrainedTokenizerFast) -> None:
        self.known, self.blurred, self.tokenizer = known, blurred, tokenizer
        self.index: dict[str, list[int]] = {}
        for i, name in enumerate(known.names):
            self.index.setdefault(name, []).append(i)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Augmented pictures (N, 3, 64, 64), ids (M, 12), and which caption is right for which (N, M)."""
        known = list(self.index)
        names = [known[i] for i in torch.randperm(len(known), generator=generator)[:NAMES]]
        rows = [i for name in names for i in self.index[name]]
        captions = [(style, name) for name in names for style in ("", *STYLES)]
        right = [
            [self.known.names[i] == name and style in ("", self.known.styles[i]) for style, name in captions]
            for i in rows
        ]
        pictures = augment(self.known.pictures[rows], self.blurred[rows], generator)
        return pictures, encode(self.tokenizer, captions), torch.tensor(right).float()


def loss(model: open_clip.CLIP, pictures: Tensor, ids: Tensor, right: Tensor) -> Tensor:
    """Contrastive cross-entropy in both directions, with several right answers per row."""
    images, texts, scale = model(pictures, ids)
    logits = (scale.clamp(max=100) * images @ texts.T).float()
    asked = right.sum(0) > 0  # a style of which there is no picture is only ever a wrong answer
    return 0.5 * (
        F.cross_entropy(logits, right / right.sum(1, keepdim=True))
        + F.cross_entropy(logits.T[asked], (right / right.sum(0)).T[asked])
    )


def encode(tokenizer: PreTrainedTokenizerFast, captions: list[tuple[str, str]]) -> Tensor:
    """(style, name) captions as (N, 12) ids."""
    texts = [f"{style} {name}" for style, name in captions]
    ids: Tensor = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids


def train(out: Path, work: Path, schedule: Schedule = SCHEDULE) -> None:
    """Trains on `out/pictures.parquet`, writes the open_clip folder `out/clip` and `out/clip/card.json`."""
    torch.manual_seed(schedule.seed)
    known, unseen = (load_set(out / "pictures.parquet", unseen) for unseen in (False, True))
    tokenizer = words.tokenizer(words.vocabulary([*STYLES, *known.names, *unseen.names]))
    blurred = through(AutoencoderKL.from_pretrained(out / "base/vae"), known.pictures)
    batches, model = Batches(known, blurred, tokenizer), open_clip.CLIP(**config(len(tokenizer)))
    fit(model, lambda generator: loss(model, *batches.draw(generator)), schedule, work / "clip")
    save(model, tokenizer, out / "clip")
    (out / "clip/card.json").write_text(
        json.dumps(evaluate(model.eval(), tokenizer, unseen), indent=2) + "\n"
    )


def save(model: open_clip.CLIP, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A folder that `open_clip.create_model("local-dir:…")` loads: config, fp16 weights, tokenizer."""
    tokenizer.save_pretrained(folder)
    settings = {"model_cfg": config(len(tokenizer)), "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    save_file(
        {name: value.contiguous() for name, value in state.items()}, folder / "open_clip_model.safetensors"
    )


@torch.no_grad()
def evaluate(model: open_clip.CLIP, tokenizer: PreTrainedTokenizerFast, unseen: Set) -> dict[str, float]:
    """Retrieval among the pictures and captions of unseen names of one style, and style recognition."""
    return retrieval(
        model.encode_image(unseen.pictures, normalize=True), texts(model, tokenizer, unseen.names), unseen
    )


@torch.no_grad()
def texts(model: open_clip.CLIP, tokenizer: PreTrainedTokenizerFast, names: list[str]) -> dict[str, Tensor]:
    """Unit features (N, 128) of the names in each style."""
    return {
        style: model.encode_text(encode(tokenizer, [(style, name) for name in names]), normalize=True)
        for style in STYLES
    }


def retrieval(images: Tensor, texts: dict[str, Tensor], unseen: Set) -> dict[str, float]:
    """How well features (N, 128) of pictures find their captions, and these the pictures; see `evaluate`."""
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
