"""What is trained: LoRA on the denoisers, or all their weights beside a frozen second copy.

The frozen weights are the pipeline's own, shared and never written to.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from diffalign.errors import DiffalignError, unknown

POLICY, REFERENCE = "policy", "reference"

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "proj_in", "proj_out"]
OTHER_ATTENTION = [["q_proj", "k_proj", "v_proj", "out_proj"], ["qkv", "out"], ["query", "key", "value"]]


@dataclass(frozen=True)
class LoraSpec:
    """LoRA of `rank`; the update is scaled by alpha / rank (alpha None: the rank, so 1).

    targets: names (or ends of names) of layers, "attention", "attention+conv", or a regular
    expression; None: the attention projections. There is no dropout: log-prob ratios would not be 1.
    """

    rank: int = 16
    alpha: float | None = None
    targets: str | list[str] | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise DiffalignError(f"the LoRA rank must be at least 1, got {self.rank}.")

    def config(self, module: nn.Module) -> LoraConfig:
        """peft's configuration for one denoiser."""
        alpha = self.rank if self.alpha is None else self.alpha
        return LoraConfig(
            r=self.rank,
            lora_alpha=alpha,
            init_lora_weights="gaussian",
            target_modules=resolve(self.targets, module),
        )


def resolve(targets: str | list[str] | None, module: nn.Module) -> str | list[str]:
    """Layers to adapt; raises if a given name fits none."""
    layers = [n for n, part in module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d)]
    if targets is None or targets in ("attention", "attention+conv"):
        names = _present(ATTENTION, layers) or next(
            (f for o in OTHER_ATTENTION if (f := _present(o, layers))), []
        )
        names += _present(CONVOLUTIONS, layers) if targets == "attention+conv" else []
        if not names:
            raise DiffalignError(
                f"{type(module).__name__} has no attention projections under a name known here; say which layers to "
                f"adapt by `lora.targets`. Its layers are called {', '.join(sorted({_last(n) for n in layers}))}."
            )
        return names
    if isinstance(targets, str):
        _require_fit(targets, layers)
        return targets
    for name in targets:
        if not _present([name], layers):
            raise unknown("LoRA target", name, {_last(n) for n in layers})
    return targets


def _require_fit(pattern: str, layers: list[str]) -> None:
    try:
        found = any(re.fullmatch(pattern, layer) for layer in layers)
    except re.error as error:
        raise DiffalignError(f"lora.targets = {pattern!r} is no regular expression: {error}.") from error
    if not found:
        raise DiffalignError(
            f"lora.targets = {pattern!r} fits no layer. Give attention, attention+conv, a list of names such as "
            f"[{_last(layers[0])}], or a regular expression for whole names such as {layers[0]!r}."
        )


def _present(names: list[str], layers: list[str]) -> list[str]:
    return [name for name in names if any(layer == name or layer.endswith("." + name) for layer in layers)]


def _last(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


class Adapters:
    """The variants of one or several denoisers: "policy", "reference" and named snapshots.

    With LoRA a variant is an adapter on shared weights; without (None), a copy of the whole module; with
    False nothing is trained, and the policy is the reference.
    """

    def __init__(self, modules: dict[str, nn.Module], lora: LoraSpec | Literal[False] | None) -> None:
        self.lora, self.base, self.active = lora, modules, POLICY
        self.snapshots: list[str] = []
        self.full: dict[str, dict[str, nn.Module]] = {}
        self._layers: list[BaseTunerLayer] = []
        if lora is None:
            trained = {name: _trainable_copy(module) for name, module in modules.items()}
            self.full = {POLICY: trained, REFERENCE: modules}
        elif lora:
            self.configs = {name: lora.config(module) for name, module in modules.items()}
            self._inject(POLICY)

    def module(self, name: str) -> nn.Module:
        """The denoiser of this name as the active variant has it."""
        return self.full[self.active][name] if self.full else self.base[name]

    def named_parameters(self, variant: str = POLICY) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of a variant that are its own, by "denoiser.parameter"."""
        for name, module in (self.full[variant] if self.full else self.base).items():
            for key, parameter in module.named_parameters():
                if self.full or _adapter_of(key) == _peft_name(variant):
                    yield f"{name}.{key}", parameter

    @contextmanager
    def using(self, variant: str) -> Iterator[None]:
        """Let this variant be the active one, and the former one again afterwards, come what may."""
        self._check(variant)
        before = self.active
        self._activate(variant)
        try:
            yield
        finally:
            self._activate(before)

    def snapshot(self, variant: str) -> None:
        """Keep the policy's weights of now as a frozen variant of this name; an older one is overwritten."""
        if self.lora is False:
            raise DiffalignError(
                "nothing is trained with lora=False, so there is nothing to keep a snapshot of."
            )
        if variant in (POLICY, REFERENCE) or "." in variant:
            raise DiffalignError(f"{variant!r} cannot be the name of a snapshot; choose another one.")
        if variant not in self.snapshots:
            self._add(variant)
        pairs = zip(self.named_parameters(), self.named_parameters(variant), strict=True)
        with torch.no_grad():
            for (_, source), (_, target) in pairs:
                target.copy_(source)

    def differs(self, variant: str = POLICY) -> bool:
        """Whether a variant has weights that make it another than the reference; a fresh LoRA's B is zero."""
        self._check(variant)
        own = self.named_parameters(variant)
        if not self.full:
            return any(bool(parameter.any()) for name, parameter in own if ".lora_B." in name)
        pairs = zip(own, self.named_parameters(REFERENCE), strict=True)
        return any(not torch.equal(a, b.to(a)) for (_, a), (_, b) in pairs)

    def state(self) -> dict[str, Tensor]:
        """A copy of the policy's own weights, by name."""
        return {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over weights that `state` gave."""
        own = dict(self.named_parameters())
        if own.keys() != state.keys() or any(own[k].shape != state[k].shape for k in own):
            raise DiffalignError(
                f"these weights ({len(state)} tensors) are not those of this policy ({len(own)} tensors): another "
                "model, LoRA rank or choice of targets. Use the settings that they were saved with."
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def _check(self, variant: str) -> None:
        if variant not in (names := [POLICY, REFERENCE, *self.snapshots]):
            raise unknown("variant of the policy", variant, names)

    def _add(self, variant: str) -> None:
        self.snapshots.append(variant)
        if self.full:
            self.full[variant] = {
                k: copy.deepcopy(m).requires_grad_(False) for k, m in self.full[POLICY].items()
            }
            return
        self._inject(variant)

    def _inject(self, variant: str) -> None:
        """A new adapter: float32 weights, gradients for the policy alone, and the list of its layers."""
        for name, module in self.base.items():
            with warnings.catch_warnings(
                action="ignore", category=UserWarning
            ):  # "already found a peft_config"
                self._inject_into(name, module, variant)
            for key, parameter in module.named_parameters():
                if adapter := _adapter_of(key):
                    parameter.data = parameter.data.float()
                    parameter.requires_grad_(adapter == POLICY)
        modules = (part for module in self.base.values() for part in module.modules())
        self._layers = [part for part in modules if isinstance(part, BaseTunerLayer)]
        self._activate(self.active)

    def _inject_into(self, name: str, module: nn.Module, variant: str) -> None:
        try:
            inject_adapter_in_model(copy.deepcopy(self.configs[name]), module, _peft_name(variant))
        except ValueError as error:  # a layer of a kind that peft has no LoRA for
            raise DiffalignError(
                f"{type(module).__name__} takes no LoRA on lora.targets = {self.lora and self.lora.targets!r}: {error}"
            ) from error

    def _activate(self, variant: str) -> None:
        # peft's public switches also turn requires_grad off, which would stop a backward under way.
        self.active = variant
        if not self.full:
            names = [POLICY if variant == REFERENCE else _peft_name(variant)]
            for layer in self._layers:
                layer.__dict__.update(_disable_adapters=variant == REFERENCE, _active_adapter=names)


def _peft_name(variant: str) -> str:
    """What peft calls a variant; it takes a name that is also a layer's for that layer when it saves."""
    return variant if variant == POLICY else f"snapshot_{variant}"


def _adapter_of(key: str) -> str | None:
    """Whose parameter this is, of peft's adapters: NAME in `...lora_A.NAME.weight`; None: the base's own."""
    found = re.search(r"\.lora_\w+\.([^.]+)(?:\.weight|\.bias)?$", key)
    return found and found[1]


def _trainable_copy(module: nn.Module) -> nn.Module:
    own = copy.deepcopy(module)
    for parameter in own.parameters():
        if not parameter.is_floating_point():
            raise DiffalignError(
                "quantised weights cannot be trained in full; use LoRA (`lora: {rank: 16}`)."
            )
        parameter.data = parameter.data.float()
    return own.requires_grad_(True)


def spec_text(adapters: Adapters) -> str:
    """What is trained, in words."""
    if adapters.lora is None:
        return "all weights (a second, frozen copy is the reference)"
    if not adapters.lora:
        return "nothing"
    module: Any = next(iter(adapters.base.values()))
    targets, alpha = module.peft_config[POLICY].target_modules, adapters.lora.alpha
    shown = targets if isinstance(targets, str) else ", ".join(sorted(targets))
    return f"LoRA of rank {adapters.lora.rank}, alpha {alpha or adapters.lora.rank:g}, on {shown}"
