"""Tiny, seeded, offline pipelines, one a model family, with published scheduler configs and guidance."""

from __future__ import annotations

from . import diffusion_transformers, flow, more, stable_diffusion, traps, video
from .base import Family

PARTS = (stable_diffusion, flow, diffusion_transformers, video, more)

FAMILIES: dict[str, Family] = {family.name: family for part in PARTS for family in part.FAMILIES}

TRAPS: dict[str, Family] = {trap.name: trap for trap in traps.TRAPS}

__all__ = ["FAMILIES", "TRAPS", "Family"]
