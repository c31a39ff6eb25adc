"""Random numbers that belong to a sample, not to a batch: the same seed gives the same noise anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def derive(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part (run seed, round, sample, step, ...)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `derive(*parts)`."""
    return torch.Generator().manual_seed(derive(*parts))


def normal(seeds: Iterable[int], shape: Sequence[int]) -> Tensor:
    """Standard normal (B, *shape) float32 on the CPU; row b depends on seeds[b] alone."""
    draws = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws)
