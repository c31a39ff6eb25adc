"""Gradients for less memory: activations of denoiser and VAE are computed again in the backward, not kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from diffalign.policy import Policy


@contextlib.contextmanager
def recomputing(policy: Policy) -> Iterator[None]:
    """Within the context: by the models' own switch, block by block; models without one as a whole."""
    decoders = [part for part in policy.shell.modules().values() if hasattr(part, "decode")]
    denoisers = [policy.adapters.module(name) for name in policy.shell.denoisers]
    with contextlib.ExitStack() as stack:
        for module, method in [
            *((part, "decode") for part in decoders),
            *((d, "forward") for d in denoisers),
        ]:
            stack.enter_context(_blocks(module) if _switch(module) else _whole(module, method))
        yield


def _switch(module: Any) -> bool:
    return bool(getattr(module, "_supports_gradient_checkpointing", False))


@contextlib.contextmanager
def _blocks(module: Any) -> Iterator[None]:
    before = module.is_gradient_checkpointing
    module.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if not before:
            module.disable_gradient_checkpointing()


@contextlib.contextmanager
def _whole(module: nn.Module, method: str) -> Iterator[None]:
    """The module's method in one piece; set on the object, whatever was there before comes back."""
    before = dict(module.__dict__)
    module.__dict__[method] = _again(getattr(module, method))
    try:
        yield
    finally:
        module.__dict__.clear()
        module.__dict__.update(before)


def _again(compute: Callable[..., Any]) -> Callable[..., Any]:
    def computed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return compute(*args, **kwargs)
        return checkpoint(compute, *args, use_reentrant=False, **kwargs)

    return computed
