"""A trained LoRA in the key layout that ComfyUI reads.

ComfyUI takes a U-Net's layers by the names of kohya's scripts, `lora_unet_` and the path with underscores, and a
transformer's by those of diffusers, `transformer.` and the path. It leaves out with a warning what it does not know.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.models.weights import LORA_FILE, lora_of


def export(folder: Path, target: Path) -> Path:
    """Write the LoRA of a folder (that `Policy.save`, or diffusers, wrote) as a file for ComfyUI's `loras` folder."""
    source = folder / LORA_FILE
    if not source.is_file():
        raise DiffalignError(
            f"there is no {LORA_FILE} in {str(folder)!r}: ComfyUI takes the LoRA of a single denoiser in diffusers' "
            "format; give the `lora` folder of a run."
        )
    spec = lora_of(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(translated(load_file(source), spec.alpha or spec.rank), target)
    return target


def translated(state: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Weights in diffusers' layout as ComfyUI names them, with each layer's alpha beside its factors."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name, narrow, wide = _layer(key)
        found[name + (narrow if ".lora_A." in key else wide)] = value.contiguous()
        found[f"{name}.alpha"] = torch.tensor(float(alpha))
    return found


def _layer(key: str) -> tuple[str, str, str]:
    """What ComfyUI calls a layer, and the ends of its two factors, the one that narrows first."""
    denoiser, _, path = key.partition(".")
    path = path.rsplit(".lora_", 1)[0]
    match denoiser:
        case "unet":
            return "lora_unet_" + path.replace(".", "_"), ".lora_down.weight", ".lora_up.weight"
        case "transformer":
            return f"transformer.{path}", ".lora_A.weight", ".lora_B.weight"
    raise DiffalignError(f"{key!r} is of neither a U-Net nor a transformer; ComfyUI would not know it.")
