"""A stand-in for a denoiser: random-looking outputs that are a smooth function of everything it is given.

With it, a whole call of a pipeline costs nothing, and two calls agree only if they gave their
denoiser the same arguments. Dimensions: R rows in a call (samples, twice that under guidance).
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffalign.models.layout import leaves_of


class Stub:
    """Outputs with the form of real ones, learnt from one real call of each denoiser."""

    def __init__(self) -> None:
        self.forms: dict[str, tuple[Any, Any]] = {}
        self.noise: dict[tuple[tuple[int, ...], int], Tensor] = {}

    def learn(self, name: str, main: Any, output: Any) -> None:
        """Remember how the form of an output follows from the main input."""
        shape = main.shape if isinstance(main, Tensor) else None
        self.forms.setdefault(name, (shape, map_tensors(output, lambda t, k: t.detach())))

    def blank(self, name: str, main: Any) -> Any:
        """An output of the right form; its content does not matter."""
        return self._fill(
            name, main, lambda shape, like, k: torch.ones(shape, dtype=like.dtype, device=like.device)
        )

    def __call__(self, name: str, main: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """cos(phase) A + sin(phase) B: A and B fixed noise, the phase (R,) a function of all arguments."""
        rows = len(main)
        phase = torch.full((rows,), _number(name), dtype=torch.float64)
        for path, leaf in leaves_of([list(args), kwargs]):
            phase = phase + (3 + 10 * _number(str(path))) * _digest(leaf, rows)

        def noise(shape: tuple[int, ...], like: Tensor, item: int) -> Tensor:
            a, b = self._noise(shape, item)
            angle = phase if len(phase) == shape[0] else phase.mean()[None]
            angle = angle.float().reshape(-1, *[1] * (len(shape) - 1))
            return torch.as_tensor(angle.cos() * a + angle.sin() * b).to(like.device, like.dtype)

        return self._fill(name, main, noise)

    def _noise(self, shape: tuple[int, ...], item: int) -> Tensor:
        if (shape, item) not in self.noise:
            generator = torch.Generator().manual_seed(item)
            self.noise[shape, item] = torch.randn((2, *shape), generator=generator)
        return self.noise[shape, item]

    def forget(self) -> None:
        """Give the memory of the noise back; the same is drawn again when needed."""
        self.noise.clear()

    def _fill(self, name: str, main: Any, make: Callable[[tuple[int, ...], Tensor, int], Tensor]) -> Any:
        seen, output = self.forms.get(name) or next(iter(self.forms.values()))
        if seen is None:
            return map_tensors(output, lambda t, k: make(tuple(t.shape), t, k), len(main))
        return map_tensors(output, lambda t, k: make(_scaled(t.shape, seen, main.shape), t, k))


def _scaled(output: Sequence[int], seen: Sequence[int], now: Sequence[int]) -> tuple[int, ...]:
    """The output's shape when the main input's goes from `seen` to `now`."""
    rest = output[1:]
    if len(output) == len(seen) == len(now):
        rest = [n if o == s else o for o, s, n in zip(output[1:], seen[1:], now[1:], strict=True)]
    return (output[0] * now[0] // seen[0], *rest)


def main_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The denoiser's first argument: the latents, in whatever form."""
    return args[0] if args else kwargs[list(inspect.signature(type(module).forward).parameters)[1]]


def _number(text: str) -> float:
    return zlib.crc32(text.encode()) / 2**32


def _digest(leaf: Any, rows: int) -> Tensor:
    """A random projection of each row of a tensor (or of all of it), (R,) or (1,)."""
    if not isinstance(leaf, Tensor):
        return torch.tensor([_number(repr(leaf))], dtype=torch.float64)
    flat = leaf.detach().cpu().double()
    flat = flat.reshape(rows, -1) if leaf.ndim and len(leaf) == rows else flat.reshape(1, -1)
    weights = torch.arange(1, flat.shape[1] + 1, dtype=torch.float64).mul(12.9898).sin()
    return torch.mv(flat, weights).div(max(1, flat.shape[1]) ** 0.5)


def map_tensors(output: Any, f: Any, length: int | None = None) -> Any:
    """The output with f(tensor, k) for every tensor, the k-th of its list; lists get `length` of them."""
    if isinstance(output, Tensor):
        return f(output, 0)
    if isinstance(output, list) and output and isinstance(output[0], Tensor):
        return [f(output[k % len(output)], k) for k in range(length or len(output))]
    if isinstance(output, dict):
        return type(output)(**{key: map_tensors(value, f, length) for key, value in output.items()})
    if isinstance(output, list | tuple):
        return type(output)(map_tensors(value, f, length) for value in output)
    return output
