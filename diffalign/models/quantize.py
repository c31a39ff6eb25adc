"""A quantised base under LoRA, through diffusers' own backends."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import diffusers
import torch

from diffalign.errors import DiffalignError, unknown


def _bitsandbytes(bits: int) -> Callable[[torch.dtype], Any]:
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}

    def config(dtype: torch.dtype) -> Any:
        options = {**four, "bnb_4bit_compute_dtype": dtype} if bits == 4 else {"load_in_8bit": True}
        return diffusers.BitsAndBytesConfig(**options)

    return config


def _torchao(kind: str) -> Callable[[torch.dtype], Any]:
    def config(dtype: torch.dtype) -> Any:
        found = importlib.import_module("torchao.quantization")
        return diffusers.TorchAoConfig(getattr(found, kind)())

    return config


def _quanto(weights: str) -> Callable[[torch.dtype], Any]:
    return lambda dtype: diffusers.QuantoConfig(weights_dtype=weights)


BACKENDS: dict[str, tuple[str, Callable[[torch.dtype], Any]]] = {
    "bitsandbytes_4bit": ("bitsandbytes", _bitsandbytes(4)),
    "bitsandbytes_8bit": ("bitsandbytes", _bitsandbytes(8)),
    "torchao_int8": ("torchao", _torchao("Int8WeightOnlyConfig")),
    "torchao_float8": ("torchao", _torchao("Float8WeightOnlyConfig")),
    "quanto_int8": ("optimum-quanto", _quanto("int8")),
    "quanto_float8": ("optimum-quanto", _quanto("float8")),
}


def quantization(name: str, dtype: torch.dtype, parts: Sequence[str]) -> Any:
    """diffusers' configuration that quantises these parts of a pipeline; computing in `dtype`."""
    if name not in BACKENDS:
        raise unknown("quantisation", name, BACKENDS)
    package, config = BACKENDS[name]
    if not _installed(package.replace("-", ".")):
        raise DiffalignError(f"quantize: {name} needs a package: `pip install {package}`.")
    return diffusers.PipelineQuantizationConfig(quant_mapping={part: config(dtype) for part in parts})


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
