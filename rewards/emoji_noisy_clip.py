"""The packaged emoji CLIP for noisy latents of the packaged emoji model: what will be in the picture?

Made to guide that model while it draws (search `nrg`); demo/emoji/README.md says how well it sees through noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from diffalign_rewards._noisy_tower import NoisyTower
from diffalign_rewards.emoji_clip import EmojiClip

EMOJI = Path(str(files("diffalign_demo") / "emoji"))


class EmojiNoisyClip(EmojiClip):
    """emoji_clip's "match" or "style" that a finished picture will have, on average, given noisy latents of it.

    Latents (B, 4, 16, 16) of the emoji model's autoencoder at any level, of diffusion and of flow models.
    Pictures are encoded, and asked about at no noise: for finished pictures emoji_clip itself is the better judge.
    """

    def __init__(self, score: Literal["match", "style"] = "match") -> None:
        super().__init__(score)
        self.noisy, self.autoencoder = _tower(), _autoencoder()

    def score_noisy(self, latents: Tensor, prompts: Sequence[str], signal: Tensor, noise: Tensor) -> Tensor:
        """Scores (B,) of latents signal x0 + noise eps (B, 4, 16, 16), levels (B,)."""
        features = self.noisy.to(latents.device)(latents, signal, noise)
        return (features * self.wanted(prompts).to(features)).sum(1)

    def embed(self, images: Tensor) -> Tensor:
        """Features (B, E) of pictures (B, 3, H, W) in [0, 1]."""
        vae = self.autoencoder.to(images.device)
        latents = vae.encode(self.look(images).to(vae.dtype)).latent_dist.mean * vae.config.scaling_factor
        features: Tensor = self.noisy.to(images.device)(
            latents, latents.new_ones(len(images)), latents.new_zeros(len(images))
        )
        return features


@cache
def _tower() -> NoisyTower:
    tower = NoisyTower()
    state = load_file(EMOJI / "noisy_clip" / "model.safetensors")
    tower.load_state_dict({name: value.float() for name, value in state.items()})
    return tower.eval().requires_grad_(False)


@cache
def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(EMOJI / "base" / "vae").eval().requires_grad_(False)
