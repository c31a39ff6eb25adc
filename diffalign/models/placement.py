"""Where a policy's parts live and in which dtype: device, half precision, offloading."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.errors import unknown
from diffalign.models.shell import Shell

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
            vae = name not in shell.denoisers and hasattr(part, "encode") and hasattr(part, "decode")
            waits = offload and (vae or name.startswith("text_encoder"))
            _convert(part, CPU if waits else device, torch.float32 if upcast else dtype)
            if vae:
                self._adapt_vae(part)
        self._encoding = False
        shell.around_encoding = self._with_text_encoders

    def free_text_encoders(self) -> None:
        """Drop what only encodes prompts."""
        for name in self.shell.modules():
            if name.startswith("text_encoder"):
                self.shell.pipe.__dict__[name] = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _with_text_encoders(self, encode: Callable[[], Any]) -> Any:
        """Encode with the text encoders on the device; the outermost call brings them and sends them back."""
        if self._encoding:
            return encode()
        parts = [part for name, part in self.shell.modules().items() if name.startswith("text_encoder")]
        for part in parts:
            _convert(part, self.device, None)
        self._encoding = True
        try:
            return encode()
        finally:
            self._encoding = False
            for part in parts if self.offload else ():
                _convert(part, CPU, None)

    def _adapt_vae(self, vae: Any) -> None:
        """Inputs in the VAE's own dtype; pipelines that cast the VAE to and fro leave it as it is."""
        for name in ("encode", "decode"):
            vae.__dict__[name] = self._in_own_dtype(vae, getattr(vae, name))
        vae.__dict__["to"] = lambda *args, **kwargs: vae

    def _in_own_dtype(self, vae: nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            _convert(vae, self.device, None)
            dtype = next(vae.parameters()).dtype
            kwargs = {
                key: _cast(value, dtype) if key in ("x", "z") else value for key, value in kwargs.items()
            }
            result = method(*(_cast(value, dtype) for value in args[:1]), *args[1:], **kwargs)
            # A backward through the VAE still needs its weights here.
            if self.offload and not torch.is_grad_enabled():
                _convert(vae, CPU, None)
            return result

        return call


def _convert(module: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
    """Move and cast a part; quantised weights keep their dtypes, and bitsandbytes has placed its own."""
    if getattr(module, "is_loaded_in_4bit", False) or getattr(module, "is_loaded_in_8bit", False):
        return
    dtype = None if getattr(module, "is_quantized", False) else dtype
    first = next((p for p in module.parameters() if p.is_floating_point()), None)
    if first is None or (
        first.device == torch.empty(0, device=device).device and dtype in (None, first.dtype)
    ):
        return
    nn.Module.to(module, device=device, dtype=dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) else value
