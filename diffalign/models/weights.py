"""Trained weights on disk, in the format that diffusers (or, where it has none, peft) loads."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.models.adapters import POLICY, Adapters, LoraSpec

PEFT_FILE, PEFT_CONFIG, PEFT_PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
LORA_A = "lora_A"
LORA_FILE = "pytorch_lora_weights.safetensors"


def save(adapters: Adapters, pipeline: Any, folder: Path) -> None:
    """Write the policy's weights.

    LoRA goes where the pipeline's `load_lora_weights`, else the denoiser's `load_lora_adapter`, else
    `PeftModel.from_pretrained` finds it; a second denoiser's LoRA, and full weights, get folders by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in _modules(adapters).items():
        own = _folder(adapters, name, folder)
        if adapters.full:
            module.save_pretrained(own)
        elif hasattr(pipeline, "save_lora_weights"):
            kind = _kind(name)
            metadata = {f"{kind}_lora_adapter_metadata": module.peft_config[POLICY].to_dict()}
            pipeline.save_lora_weights(own, **{f"{kind}_lora_layers": _lora(module)}, **metadata)
        elif hasattr(module, "save_lora_adapter"):
            module.save_lora_adapter(own, adapter_name=POLICY)
        else:
            _save_peft(module, own)


def load(adapters: Adapters, folder: Path) -> None:
    """Read what `save` wrote into the policy; raises if it belongs to another model, rank or targets."""
    for name, module in _modules(adapters).items():
        own = _folder(adapters, name, folder)
        if adapters.full:
            state = type(module).from_pretrained(_existing(own)).state_dict()
            _check(module.state_dict(), state, own)
            module.load_state_dict(state)
        else:
            state = _read_lora(own, _kind(name))
            _check(_lora(module), state, own)
            set_peft_model_state_dict(module, state, adapter_name=POLICY)


def version(state: Mapping[str, Tensor]) -> str:
    """Twelve digits of the SHA-256 of weights by name: equal for equal bits, wherever they are read from."""
    digest = hashlib.sha256()
    for name, values in sorted(state.items()):
        digest.update(name.encode() + values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def lora_of(folder: Path) -> LoraSpec:
    """The rank, alpha and layers of the LoRA in a folder, as its files tell."""
    path = _lora_file(folder)
    with safe_open(path, framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 - no mapping
        told = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    if (own := folder / PEFT_CONFIG).is_file():
        told |= json.loads(own.read_text(encoding="utf-8"))
    factors = {key.split(f".{LORA_A}.")[0]: shape for key, shape in shapes.items() if f".{LORA_A}." in key}
    ranks = {shape[0] for shape in factors.values()}
    if len(ranks) != 1:
        raise DiffalignError(
            f"{path} holds no LoRA of one rank, but of the ranks {sorted(ranks)}; give one that diffalign, diffusers "
            "or peft saved for a single denoiser."
        )
    layers = [re.sub(rf"^(unet|transformer)\.|^{re.escape(PEFT_PREFIX)}", "", layer) for layer in factors]
    alphas = [value for key, value in told.items() if key.endswith("lora_alpha")]
    return LoraSpec(ranks.pop(), alphas[0] if alphas else None, layers)


def _modules(adapters: Adapters) -> dict[str, Any]:
    if adapters.lora is False:
        raise DiffalignError(
            "nothing is trained with lora=False, so there are no weights to save or to load."
        )
    return dict(adapters.full[POLICY] if adapters.full else adapters.base)


def _folder(adapters: Adapters, name: str, folder: Path) -> Path:
    return folder / name if adapters.full or name != next(iter(adapters.base)) else folder


def _kind(name: str) -> str:
    return "unet" if name.startswith("unet") else "transformer"


def _lora(module: Any) -> dict[str, Tensor]:
    state = get_peft_model_state_dict(module, adapter_name=POLICY)
    return {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}


def _save_peft(module: Any, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.copy(module.peft_config[POLICY])
    config.inference_mode = True
    config.save_pretrained(folder)
    save_file({PEFT_PREFIX + key: tensor for key, tensor in _lora(module).items()}, folder / PEFT_FILE)


def _read_lora(folder: Path, kind: str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = load_file(_lora_file(folder))
    return {key.removeprefix(f"{kind}.").removeprefix(PEFT_PREFIX): tensor for key, tensor in state.items()}


def _lora_file(folder: Path) -> Path:
    found = [file for file in (folder / LORA_FILE, folder / PEFT_FILE) if file.is_file()]
    if not found:
        raise DiffalignError(
            f"there are no LoRA weights in {str(folder)!r} (neither {LORA_FILE} nor {PEFT_FILE})."
        )
    return found[0]


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise DiffalignError(f"there are no saved weights in {str(folder)!r}.")
    return folder


def _check(own: dict[str, Tensor], state: dict[str, Tensor], folder: Path) -> None:
    if own.keys() != state.keys() or any(own[key].shape != state[key].shape for key in own):
        raise DiffalignError(
            f"the weights in {str(folder)!r} are of another model, LoRA rank or choice of targets; use the settings "
            "that they were saved with."
        )
