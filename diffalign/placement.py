"""Where a policy's parts live and in which dtype: device, half precision, offloading."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.errors import unknown
from diffalign.shell import Shell

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CPU = torch.device("cpu")


def dtype_of(name: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype of this name."""
    if isinstance(name, str) and name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return DTYPES[name] if isinstance(name, str) else name


class Placement:
    """Puts the parts of a shell where they belong.

    A VAE that overflows in half precision (`force_upcast`) stays float32 for the whole run. With
    `offload`, text encoders and VAE wait on the CPU and come to the device for as long as they are used.
    """

    def __init__(self, shell: Shell, device: torch.device, dtype: torch.dtype | None, offload: bool) -> None:
        self.shell, self.device, self.offload = shell, device, offload
        shell.live_on(device)
        for name, part in shell.modules().items():
            upcast = getattr(getattr(part, "config", None), "force_upcast", False)
            _convert(
                part, CPU if offload and self._waits(name) else device, torch.float32 if upcast else dtype
            )
            if name not in shell.denoisers and hasattr(part, "encode") and hasattr(part, "decode"):
                self._adapt_vae(part)
        shell.around_encoding = self._with_text_encoders

    def free_text_encoders(self) -> None:
        """Drop what only encodes prompts."""
        for name in self.shell.modules():
            if name.startswith(("text_encoder", "image_encoder")):
                self.shell.pipe.__dict__[name] = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _waits(self, name: str) -> bool:
        return name not in self.shell.denoisers and name.startswith(
            ("text_encoder", "image_encoder", "v", "movq")
        )

    def _with_text_encoders(self, encode: Callable[[], Any]) -> Any:
        parts = [p for n, p in self.shell.modules().items() if self.offload and self._waits(n)]
        for part in parts:
            _convert(part, self.device, None)
        try:
            return encode()
        finally:
            for part in parts:
                _convert(part, CPU, None)

    def _adapt_vae(self, vae: Any) -> None:
        """Inputs in the VAE's own dtype; pipelines that cast the VAE to and fro leave it as it is."""
        for name in ("encode", "decode"):
            vae.__dict__[name] = self._cast(vae, getattr(vae, name))
        vae.__dict__["to"] = lambda *args, **kwargs: vae

    def _cast(self, vae: nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            _convert(vae, self.device, None)
            result = method(x.to(next(vae.parameters()).dtype), *args, **kwargs)
            # A backward through the VAE still needs its weights here.
            if self.offload and not torch.is_grad_enabled():
                _convert(vae, CPU, None)
            return result

        return call


def _convert(module: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
    if getattr(module, "is_quantized", False) or getattr(module, "is_loaded_in_4bit", False):
        return
    first = next((p for p in module.parameters() if p.is_floating_point()), None)
    if first is None or (first.device == device and dtype in (None, first.dtype)):
        return
    nn.Module.to(module, device=device, dtype=dtype)
