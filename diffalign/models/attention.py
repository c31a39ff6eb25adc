"""Attention backends, through diffusers' own switches."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn

from diffalign.errors import DiffalignError

NAMES = {"sdpa": "native"}


def set_attention(denoisers: dict[str, nn.Module], backend: str, device: torch.device) -> None:
    """Let the denoisers compute attention with this backend; "auto" leaves diffusers' choice (sdpa)."""
    if backend == "auto":
        return
    if backend == "xformers":
        _check_xformers(device)
    for module in denoisers.values():
        _set(module, backend)


def _check_xformers(device: torch.device) -> None:
    if importlib.util.find_spec("xformers") is None:
        raise DiffalignError(
            "attention: xformers is not installed. `pip install 'diffalign[xformers]'`, or use attention: auto."
        )
    if device.type != "cuda":
        raise DiffalignError(
            f"attention: xformers needs a CUDA device, this run is on {device}. Use attention: auto."
        )


def _set(module: Any, backend: str) -> None:
    try:
        if (
            backend == "xformers"
            and hasattr(module, "set_attn_processor")
            and "UNet" in type(module).__name__
        ):
            module.enable_xformers_memory_efficient_attention()
        elif backend == "sdpa" and "UNet" in type(module).__name__:
            module.set_attn_processor(AttnProcessor2_0())
        else:
            module.set_attention_backend(NAMES.get(backend, backend))
    except (ValueError, RuntimeError, ImportError, ModuleNotFoundError, AttributeError, KeyError) as problem:
        line = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        raise DiffalignError(
            f"attention: {backend} does not work for {type(module).__name__} here: {line} Use attention: auto."
        ) from None
