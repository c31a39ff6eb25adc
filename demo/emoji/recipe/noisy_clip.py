"""Step `noisy_clip`: a tower that sees through noise what the emoji CLIP will see in the finished picture."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from diffalign_rewards._noisy_tower import NoisyTower

from . import clip
from .fit import Schedule, fit

BATCH, CONTRAST = 256, 0.05
SCHEDULE = Schedule(steps=600, rate=2e-3, decay=0.99, weight_decay=0.05, save_every=50)
LEVELS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97, 0.998)
"""Noise levels sqrt(1 - abar) of the card; the emoji model's runs of 20 steps begin at 0.9975."""


@dataclass
class Pictures:
    """Latents (N, 4, 16, 16) of pictures, and the judge's unit features (N, 128) of them."""

    latents: Tensor
    features: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, judge: open_clip.CLIP, vae: AutoencoderKL, pictures: Tensor) -> Pictures:
        """Encoded once, under bf16 autocast as in training; the features in fp32."""
        with torch.autocast("cpu", torch.bfloat16):
            codes = torch.cat(
                [vae.encode(part).latent_dist.mean.float() for part in torch.split(pictures, 64)]
            )
        features = [judge.encode_image(part, normalize=True) for part in torch.split(pictures, 64)]
        return cls(codes * vae.config.scaling_factor, torch.cat(features))


def shifted(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Latents (B, C, H, W) moved by up to one cell (four pixels) in each direction, the margin repeated."""
    top, left = torch.randint(3, (2,), generator=generator).tolist()
    height, width = latents.shape[-2:]
    return F.pad(latents, (1, 1, 1, 1), "replicate")[..., top : top + height, left : left + width]


@dataclass
class Captions:
    """Unit features (M, 128) of all captions, and for every picture the places of its own two, (N, 2)."""

    features: Tensor
    own: Tensor

    @classmethod
    def of(cls, judge: open_clip.CLIP, tokenizer: open_clip.HFTokenizer, known: clip.Set) -> Captions:
        """NAME, flat NAME and 3d NAME; NAME and the one in its style are a picture's own."""
        styles, names = ("", *clip.STYLES), list(dict.fromkeys(known.names))
        place = {name: len(styles) * k for k, name in enumerate(names)}
        own = [(place[n], place[n] + styles.index(s)) for n, s in zip(known.names, known.styles, strict=True)]
        with torch.no_grad():
            ids = clip.encode(tokenizer.tokenizer, [(style, name) for name in names for style in styles])
            features = torch.cat([judge.encode_text(some, normalize=True) for some in torch.split(ids, 256)])
        return cls(features, torch.tensor(own))


def loss(
    tower: NoisyTower, seen: Pictures, captions: Captions, scale: float, generator: torch.Generator
) -> Tensor:
    """Squared distance to the clean picture's features, whose minimum is their mean given the noisy latents.

    Beside that, the cross-entropy of a picture's own captions among all, which sharpens what tells names apart.
    """
    index = torch.randint(len(seen.latents), (BATCH,), generator=generator)
    angle = 0.5 * math.pi * torch.rand(BATCH, generator=generator)
    latents = shifted(seen.latents[index], generator)
    noise = torch.randn(latents.shape, generator=generator)
    features: Tensor = tower(noisy(latents, noise, angle), angle.cos(), angle.sin()).float()
    distance = (features - seen.features[index]).square().sum(1).mean()
    chances = F.log_softmax(scale * features @ captions.features.T, 1)
    return distance - CONTRAST * chances.gather(1, captions.own[index]).mean()


def noisy(latents: Tensor, noise: Tensor, angle: Tensor) -> Tensor:
    """cos(angle) x0 + sin(angle) eps, angle (B,)."""
    angle = angle[:, None, None, None]
    return angle.cos() * latents + angle.sin() * noise


def train(out: Path, work: Path, schedule: Schedule = SCHEDULE) -> None:
    """Trains on `out/pictures.parquet` for `out/base/vae` and `out/clip`; writes `out/noisy_clip`."""
    torch.manual_seed(schedule.seed)
    judge, tokenizer = load_judge(out)
    vae = AutoencoderKL.from_pretrained(out / "base/vae")
    known, unseen = (clip.load_set(out / "pictures.parquet", unseen) for unseen in (False, True))
    seen = Pictures.of(judge, vae, known.pictures)
    captions, tower = Captions.of(judge, tokenizer, known), NoisyTower()
    scale = float(judge.logit_scale.exp().clamp(max=100))
    fit(tower, lambda generator: loss(tower, seen, captions, scale, generator), schedule, work / "noisy_clip")
    save(tower, out / "noisy_clip")
    texts = clip.texts(judge, tokenizer.tokenizer, unseen.names)
    card = evaluate(tower.eval(), Pictures.of(judge, vae, unseen.pictures).latents, texts, unseen)
    (out / "noisy_clip/card.json").write_text(json.dumps(card, indent=2) + "\n")


def load_judge(out: Path) -> tuple[open_clip.CLIP, open_clip.HFTokenizer]:
    """The emoji CLIP of step `clip`, frozen, and its tokenizer."""
    judge = open_clip.create_model(f"local-dir:{out / 'clip'}").eval().requires_grad_(False)
    return judge, open_clip.get_tokenizer(f"local-dir:{out / 'clip'}")


def save(tower: NoisyTower, folder: Path) -> None:
    """fp16 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.half() for name, value in tower.state_dict().items()}, folder / "model.safetensors"
    )


@torch.no_grad()
def evaluate(
    tower: NoisyTower, latents: Tensor, texts: dict[str, Tensor], unseen: clip.Set
) -> dict[str, dict[str, float]]:
    """By noise level: retrieval and style recognition on pictures of unseen names, as for the emoji CLIP itself."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    found = {}
    for level in LEVELS:
        angle = torch.full((len(latents),), math.asin(level))
        features = tower(noisy(latents, noise, angle), angle.cos(), angle.sin())
        found[str(level)] = clip.retrieval(features, texts, unseen)
    return found
