"""The guided output at latents and timesteps: by template where there is one, else by replay.

Dimensions: B samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.errors import DiffalignError
from diffalign.models.adapters import Adapters
from diffalign.models.capture import Capture
from diffalign.models.conditioning import Conditioning
from diffalign.models.stub import map_tensors

Predict = Callable[[Tensor, Tensor, Conditioning], Tensor]


class Denoisers:
    """Calls the active variant of a denoiser, under autocast and compiled if so wished."""

    def __init__(
        self, adapters: Adapters, device: torch.device, autocast: torch.dtype | None, compile: bool
    ) -> None:
        self.adapters, self.device, self.autocast, self.compile = adapters, device, autocast, compile
        self.compiled: dict[nn.Module, Any] = {}

    def __call__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output; what autocast made half precision is float32 again, as the code around expects it."""
        module = self._module(name)
        if self.autocast is None:
            return module(*args, **kwargs)
        with torch.autocast(self.device.type, self.autocast):
            output = module(*args, **kwargs)
        return map_tensors(output, lambda tensor, _: tensor.float() if tensor.is_floating_point() else tensor)

    def _module(self, name: str) -> Any:
        module = self.adapters.module(name)
        if self.compile and module not in self.compiled:
            self.compiled[module] = torch.compile(module)
        return self.compiled.get(module, module)


class Predictor:
    """One pipeline's guided output, for timesteps that may differ from sample to sample."""

    def __init__(self, capture: Capture, denoise: Denoisers) -> None:
        self.capture, self.denoise = capture, denoise
        self._vector: bool | None = None

    def __call__(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The guided output (B, ...) at x (B, ...) and t (B,)."""
        if self.capture.template is None:
            return by_timestep(self._replay, x, t, cond)
        if self._takes_vectors(x, cond):
            return self._template(x, t, cond)
        return by_timestep(lambda x, t, cond: self._template(x, t[0], cond), x, t, cond)

    def _template(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        template = self.capture.template
        assert template is not None
        index = None if template.timed and not template.scheduled else self._index(t)
        captured = self.capture.captured(cond)
        calls = zip(template.names, template.arguments(x, t, captured), strict=True)
        outputs = [self.denoise(name, args, kwargs) for name, (args, kwargs) in calls]
        return template.output(outputs, x, index)

    def _replay(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self.capture.replay(x, int(self._index(t)[0]), cond)

    def _index(self, t: Tensor) -> Tensor:
        """Grid indices (B,) of timesteps (B,) or ()."""
        timesteps = self.capture.grid.timesteps
        match = timesteps[None].double() == t.detach().cpu().double().reshape(-1, 1)
        if not bool(match.any(1).all()):
            raise DiffalignError(f"timesteps {t.tolist()} are not all on the grid {timesteps.tolist()}.")
        return match.int().argmax(1)

    def _takes_vectors(self, x: Tensor, cond: Conditioning) -> bool:
        """Whether the denoiser takes a timestep a row; tried once where the pipeline gives one for all rows."""
        template = self.capture.template
        assert template is not None
        if self._vector is None:
            self._vector = template.vector or self._try_vector(x[:1].detach(), cond[[0]])
        return self._vector

    @torch.no_grad()
    def _try_vector(self, x: Tensor, cond: Conditioning) -> bool:
        t = self.capture.grid.timesteps[[0, -1]].to(x.device)
        try:
            together = self._template(torch.cat([x, x]), t, cond[[0, 0]])
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
        alone = torch.cat([self._template(x, time, cond) for time in t])
        half = alone.dtype != torch.float32 or self.denoise.autocast is not None
        error, scale = (together - alone).abs().max(), alone.abs().max()
        return bool(error <= (5e-2 if half else 1e-4) * scale)


def by_timestep(predict: Predict, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """One call of `predict` for each distinct timestep."""
    listed = t.tolist()
    rows = {value: [k for k, other in enumerate(listed) if other == value] for value in dict.fromkeys(listed)}
    if len(rows) == 1:
        return predict(x, t, cond)
    outputs = torch.cat([predict(x[group], t[group], cond[group]) for group in rows.values()])
    order = torch.tensor([row for group in rows.values() for row in group], device=outputs.device)
    return outputs[order.argsort()]
