"""Tiny, seeded, offline pipelines, one a model family, with published scheduler configs and guidance."""

from __future__ import annotations

from . import flow, stable_diffusion
from .base import Family

FAMILIES: dict[str, Family] = {
    family.name: family for part in (stable_diffusion, flow) for family in part.FAMILIES
}

__all__ = ["FAMILIES", "Family"]
