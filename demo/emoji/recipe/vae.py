"""Step `vae`: the autoencoder, 64×64×3 pictures ↔ 16×16×4 latents."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from . import data
from .fit import Schedule, fit

BATCH = 16
SCHEDULE = Schedule(steps=700, rate=2e-3, decay=0.99)


def build() -> AutoencoderKL:
    """An untrained autoencoder of 0.95 M parameters."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        sample_size=64,
        norm_num_groups=16,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        force_upcast=False,
    )


def pixels(images: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 → (N, 3, H, W) in [−1, 1]."""
    return images.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def loss(vae: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    """L1 + ½·MSE of the reconstruction + 1e−4·KL per latent element, on a random, often mirrored batch."""
    batch = pixels(images[torch.randint(len(images), (BATCH,), generator=generator)])
    if torch.rand((), generator=generator) < 0.5:
        batch = batch.flip(-1)
    posterior = vae.encode(batch).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator)
    output = vae.decode(posterior.mean + posterior.std * noise).sample.float()
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    loss: Tensor = F.l1_loss(output, batch) + 0.5 * F.mse_loss(output, batch) + 1e-4 * divergence
    return loss


@torch.no_grad()
def latents(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Posterior means × `scaling_factor` of all pictures, fp32."""
    means = [vae.encode(pixels(part)).latent_dist.mean for part in torch.split(images, 64)]
    scaled: Tensor = torch.cat(means).float() * vae.config.scaling_factor
    return scaled


def train(out: Path, work: Path, schedule: Schedule = SCHEDULE, start: Path | None = None) -> None:
    """Trains from `out/pictures.parquet`, scales latents to unit variance, writes `out/base/vae`.

    start: a pipeline whose autoencoder to go on from, instead of random weights.
    """
    torch.manual_seed(schedule.seed)
    images = torch.from_numpy(data.arrays(out / "pictures.parquet")[0])
    vae = AutoencoderKL.from_pretrained(start / "vae") if start else build()
    fit(vae, lambda generator: loss(vae, images, generator), schedule, work / "vae")
    vae.register_to_config(scaling_factor=1.0)
    vae.register_to_config(scaling_factor=float(1 / latents(vae, images).std()))
    vae.half().save_pretrained(out / "base/vae")
