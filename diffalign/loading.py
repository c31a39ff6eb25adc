"""Pipelines from a folder, the hub or the package, quantised through diffusers' own backends on demand."""

from __future__ import annotations

import importlib.util
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from diffalign.errors import DiffalignError, unknown

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

QUANTIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bitsandbytes_4bit": ("bitsandbytes", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    "bitsandbytes_8bit": ("bitsandbytes", {"load_in_8bit": True}),
    "torchao_int8wo": ("torchao", {"quant_type": "int8wo"}),
    "quanto_int8": ("optimum.quanto", {"weights_dtype": "int8"}),
    "quanto_float8": ("optimum.quanto", {"weights_dtype": "float8"}),
}


def load_pipeline(
    model: str,
    revision: str | None,
    variant: str | None,
    dtype: str | torch.dtype | None,
    quantize: str | None,
) -> DiffusionPipeline:
    """The pipeline of a model; DiffalignError says what is missing."""
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    source = _source(model)
    options: dict[str, Any] = {"revision": revision, "variant": variant}
    options["torch_dtype"] = DTYPES[dtype] if isinstance(dtype, str) else dtype or torch.float32
    if quantize:
        options["quantization_config"] = _quantization(quantize, options["torch_dtype"])
    try:
        return DiffusionPipeline.from_pretrained(source, **options)
    except (OSError, ValueError) as problem:
        raise DiffalignError(f"the model {model!r} could not be loaded: {problem}") from problem


def _source(model: str) -> str:
    if model == "emoji":
        return str(resources.files("diffalign_demo.emoji") / "base")
    local = Path(model).expanduser()
    if local.is_dir() and not (local / "model_index.json").is_file():
        raise DiffalignError(f"the folder {model!r} has no model_index.json, so it is no diffusers pipeline.")
    if not local.is_dir() and (model.startswith((".", "/", "~")) or model.count("/") != 1):
        raise DiffalignError(
            f"there is no model folder {model!r}. Give a folder in diffusers' format, a hub id such as "
            "'stable-diffusion-v1-5/stable-diffusion-v1-5', or 'emoji', the packaged model."
        )
    return str(local) if local.is_dir() else model


def _quantization(name: str, dtype: torch.dtype) -> Any:
    from diffusers import PipelineQuantizationConfig

    if name not in QUANTIZERS:
        raise unknown("quantisation", name, QUANTIZERS)
    package, settings = QUANTIZERS[name]
    try:
        found = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        shown = package.replace(".", "-")
        raise DiffalignError(f"quantize: {name} needs the package {shown}: `pip install {shown}`.")
    kinds = {"bitsandbytes": name, "torchao": "torchao", "optimum.quanto": "quanto"}
    settings = {**settings, **({"bnb_4bit_compute_dtype": dtype} if name == "bitsandbytes_4bit" else {})}
    return PipelineQuantizationConfig(
        quant_backend=kinds[package], quant_kwargs=settings, components_to_quantize=["transformer", "unet"]
    )
