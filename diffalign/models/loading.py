"""Pipelines from a folder, the hub or the package, quantised through diffusers' own backends on demand."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoModel, DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from diffalign.errors import DiffalignError
from diffalign.models.placement import dtype_of
from diffalign.models.quantize import quantization
from diffalign_demo.emoji import load_turbo

PACKAGED = ("emoji", "emoji-turbo")


def load_pipeline(
    model: str,
    revision: str | None,
    variant: str | None,
    dtype: str | torch.dtype | None,
    quantize: str | None,
    parts: Mapping[str, str] | None = None,
) -> DiffusionPipeline:
    """The pipeline of a model, with parts of it from elsewhere; DiffalignError says what is missing."""
    source = _source(model)
    if revision and Path(source).is_dir():
        raise DiffalignError(
            f"{model!r} is a folder, which has no revision {revision!r}; leave revision out."
        )
    options: dict[str, Any] = {"revision": revision, "variant": variant, "use_safetensors": True}
    options["dtype"] = dtype_of(dtype) or torch.float32
    if quantize:
        options["quantization_config"] = quantization(
            quantize, options["dtype"], _denoisers(source, revision)
        )
    try:
        with _quiet():
            if model == "emoji-turbo":
                return load_turbo(**options)
            own = {name: _part(place, options["dtype"]) for name, place in (parts or {}).items()}
            return DiffusionPipeline.from_pretrained(source, **options, **own)
    except (OSError, ValueError, RuntimeError, ImportError) as problem:
        hint = _PICKLED.format(model) if "safetensors" in str(problem) else ""
        raise DiffalignError(f"the model {model!r} could not be loaded: {problem}{hint}") from problem


def _part(place: str, dtype: torch.dtype) -> nn.Module:
    """A model from a folder, or from a hub id with the folder inside it: OWNER/NAME/FOLDER."""
    path = Path(place).expanduser()
    source, inside = (str(path), "") if path.is_dir() else _inside(place)
    own: nn.Module = AutoModel.from_pretrained(
        source, subfolder=inside or None, torch_dtype=dtype, use_safetensors=True
    )
    return own


def _inside(place: str) -> tuple[str, str]:
    names = place.split("/")
    return "/".join(names[:2]), "/".join(names[2:])


def own_guidance(model: str) -> float | None:
    """The guidance scale of a packaged model that has guidance distilled into it; None: its pipeline's."""
    return 1.0 if model == "emoji-turbo" else None


_PICKLED = (
    " Weights in pickle files (.bin, .pt) are never loaded, because they can run any code. Convert those you trust: "
    "DiffusionPipeline.from_pretrained({!r}, use_safetensors=False).save_pretrained(NEW_FOLDER)."
)


def _denoisers(source: str, revision: str | None) -> list[str]:
    index = DiffusionPipeline.load_config(source, revision=revision)
    return [name for name in index if name.startswith(("unet", "transformer", "prior", "decoder"))]


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of loading where nobody watches."""
    for library in () if sys.stderr.isatty() else (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    yield


def _source(model: str) -> str:
    if model in PACKAGED:
        return str(resources.files("diffalign_demo.emoji") / "base")
    local = Path(model).expanduser()
    if local.is_dir() and not (local / "model_index.json").is_file():
        raise DiffalignError(f"the folder {model!r} has no model_index.json, so it is no diffusers pipeline.")
    if not local.is_dir() and (model.startswith((".", "/", "~")) or model.count("/") != 1):
        raise DiffalignError(
            f"there is no model folder {model!r}. Give a folder in diffusers' format, a hub id such as "
            "'stable-diffusion-v1-5/stable-diffusion-v1-5', or one of the packaged models, "
            f"{' and '.join(PACKAGED)}."
        )
    return str(local) if local.is_dir() else model
