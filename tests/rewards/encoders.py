"""Encoders small enough to know everything about."""

from __future__ import annotations

import torch


class Pixels:
    """Features are the pixels themselves, so that sets of any features can be made."""

    differentiable = True

    def embed(self, images):
        return images.flatten(1)

    def __call__(self, images, prompts, **metadata):
        return images.mean((1, 2, 3))


class Bent(Pixels):
    """Six smooth features, and as many of a prompt."""

    def embed(self, images):
        mix = torch.randn(
            images[0].numel(), 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64
        )
        return torch.tanh(images.double().flatten(1) @ mix / 2)

    def cosine(self, images, prompts):
        wanted = torch.stack([self.embed(torch.full((1, *images[0].shape), len(p) / 9))[0] for p in prompts])
        return torch.cosine_similarity(self.embed(images), wanted)


def as_pictures(features):
    """Pictures (N, 3, 1, E / 3) whose `Pixels` are these features (N, E)."""
    return features.reshape(len(features), 3, 1, -1)


def slope(function, images, direction, step=1e-6):
    """(analytic, numeric) derivative of a function of pictures along a direction, in float64."""
    images = images.double().requires_grad_()
    (gradient,) = torch.autograd.grad(function(images).sum(), images)
    with torch.no_grad():
        ends = [function(images + s * step * direction).sum() for s in (1, -1)]
    return float((gradient * direction).sum()), float((ends[0] - ends[1]) / (2 * step))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def colours(*shape, seed=0):
    """Uniform in [0.1, 0.9]."""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 + 0.8 * torch.rand(*shape, generator=generator, dtype=torch.float64)
