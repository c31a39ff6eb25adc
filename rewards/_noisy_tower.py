"""A small picture tower that reads noisy latents, whatever their noise level.

B samples, E features.
"""

from __future__ import annotations

import math

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, ResnetBlock2D
from torch import Tensor, nn

TIME = 256


class NoisyTower(nn.Module):
    """Latents (B, C, H, W) = signal x0 + noise eps to features (B, E): the mean of x0's unit features, given them.

    So their length says how sure it is. Latents are brought to unit signal^2 + noise^2 first: one tower
    serves diffusion and flow models. 1.0 M parameters with 4 channels and 128 features.
    """

    def __init__(
        self, channels: int = 4, features: int = 128, widths: tuple[int, ...] = (64, 128, 160)
    ) -> None:
        super().__init__()
        self.angle = Timesteps(64, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(64, TIME)
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            ResnetBlock2D(in_channels=before, out_channels=after, temb_channels=TIME, groups=16)
            for before, after in zip((widths[0], *widths), widths, strict=False)
        )
        self.halve = nn.ModuleList(Downsample2D(width, use_conv=False) for width in widths)
        self.head = nn.Sequential(
            nn.GroupNorm(16, widths[-1]), nn.SiLU(), nn.Flatten(), nn.Linear(4 * widths[-1], features)
        )

    def forward(self, latents: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """Features (B, E) of latents (B, C, 16, 16) at these levels (B,)."""
        level = torch.atan2(noise, signal) * (2 / math.pi)
        time = self.time(self.angle(1000 * level).to(latents.dtype))
        x = self.stem(latents / torch.hypot(signal, noise)[:, None, None, None])
        for block, halve in zip(self.blocks, self.halve, strict=True):
            x = halve(block(x, time))
        features: Tensor = self.head(x)
        return features
