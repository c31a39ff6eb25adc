"""A private copy of a diffusers pipeline whose denoiser, scheduler and prompt encoder are ours to watch.

The user's pipeline is never touched: the copy has module trees of its own over the same weights.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

from diffalign.errors import DiffalignError, unknown
from diffalign.models.schedulers import deterministic, own_timesteps

OURS = {
    "num_inference_steps": "steps", "eta": "rule", "prompt": "prompts", "generator": "seed",
    "num_images_per_prompt": "images_per_prompt", "num_videos_per_prompt": "images_per_prompt",
    "timesteps": "timesteps",
    **dict.fromkeys(("batch_size", "output_type", "return_dict", "sigmas", "latents", "callback",
                     "callback_steps", "callback_on_step_end", "callback_on_step_end_tensor_inputs")),
}  # fmt: skip
"""Arguments that the loop owns, or that would have no effect in it -> the key of a config to use instead."""


class Stop(BaseException):
    """Ends a pipeline's call from inside; no `except Exception` of a pipeline catches it."""

    def __init__(self, value: Any = None) -> None:
        self.value = value


class StepResult(tuple[Any, ...]):
    """What `scheduler.step` returns, as a tuple and by name; some take the clean sample, second, in a one-step run."""

    @property
    def prev_sample(self) -> Any:
        """The next latents."""
        return self[0]


@dataclass
class Watch:
    """What happens at the three seams during one call of the pipeline.

    denoise(name, args, kwargs) stands for the denoiser; step(output, timestep, sample) for
    `scheduler.step`; encode(original, args, kwargs) for `encode_prompt`; `keep` are the indices of
    the timesteps that the loop runs over (None: all).
    """

    denoise: Callable[[str, tuple[Any, ...], dict[str, Any]], Any]
    step: Callable[[Tensor, Tensor, Tensor], Tensor]
    encode: Callable[..., Any] = field(default=lambda original, args, kwargs: original(*args, **kwargs))
    keep: Sequence[int] | None = None


class Shell:
    """The pipeline's own code around seams that a `Watch` fills, one call at a time."""

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        call: dict[str, Any],
        steps: int,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        self.pipeline_class = type(pipeline)
        self.family = self.pipeline_class.__name__
        self.parameters = inspect.signature(type(pipeline).__call__).parameters
        self.call, self.steps = self._checked(call), steps
        self.pipe = _private(pipeline)
        self.denoisers = {name: self.pipe.__dict__[name] for name in _denoisers(pipeline)}
        self.watch: Watch | None = None
        scheduler = deterministic(pipeline.scheduler, self.family)
        self.timesteps = (
            None if timesteps is None else own_timesteps(timesteps, steps, scheduler, self.family)
        )
        self.scheduler = self._watched_scheduler(scheduler)
        self.pipe.__dict__["scheduler"] = self.scheduler
        for name, module in self.denoisers.items():
            self.pipe.__dict__[name] = _proxy(module, functools.partial(self._denoise, name))
        if callable(getattr(pipeline, "encode_prompt", None)):
            self._watch_encoder()
        self._stateful = {k: v for k, v in self.pipe.__dict__.items() if _is_stateful(v)}
        self.around_encoding: Callable[[Callable[[], Any]], Any] = lambda encode: encode()
        self.live_on(pipeline._execution_device)

    def live_on(self, device: torch.device) -> None:
        """Let the pipeline make its tensors on this device, wherever its parts are."""
        self.device = device
        own = {"_execution_device": property(lambda pipe: device), "device": property(lambda pipe: device)}
        self.pipe.__class__ = type(self.family, (self.pipeline_class,), own)

    def modules(self) -> dict[str, nn.Module]:
        """The parts of the pipeline that have weights (the denoisers themselves, not their proxies)."""
        parts = {name: part for name, part in self.pipe.components.items() if isinstance(part, nn.Module)}
        return {**parts, **self.denoisers}

    def run(self, inputs: dict[str, Any], size: int, watch: Watch, **extra: Any) -> Any:
        """Call the pipeline on `size` samples; what it returns, or the value it was stopped with.

        Randomness comes from a generator for each sample, all of one seed; the global state is left alone.
        """
        device = self.device
        generators = [torch.Generator(device).manual_seed(0) for _ in range(size)]
        given = {**self.call, "num_inference_steps": self.steps, "generator": generators, "output_type": "pt"}
        given = {**given, "return_dict": False, **self._spread(size), **inputs, **extra}
        self.pipe.__dict__.update({name: copy.deepcopy(part) for name, part in self._stateful.items()})
        before, self.watch = self.watch, watch
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(0)
                known = {name: value for name, value in given.items() if name in self.parameters}
                return inspect.unwrap(type(self.pipe).__call__)(self.pipe, **known)
        except Stop as stop:
            return stop.value
        finally:
            self.watch = before

    @contextlib.contextmanager
    def blank_pictures(self) -> Iterator[None]:
        """Let VAEs decode a corner of the latents only, and give blank pictures of the size that follows."""
        parts = [part for name, part in self.modules().items() if name not in self.denoisers]
        before = {part: dict(part.__dict__) for part in parts if hasattr(part, "decode")}
        for part in before:
            part.__dict__["decode"] = _corner(part.decode)  # type: ignore[arg-type]
        try:
            yield
        finally:
            for part, attributes in before.items():
                part.__dict__.clear()
                part.__dict__.update(attributes)

    def takes(self, name: str) -> bool:
        """Whether the pipeline's call has this argument."""
        return name in self.parameters

    def _checked(self, call: dict[str, Any]) -> dict[str, Any]:
        allowed = set(self.parameters) - set(OURS) - {"self", "kwargs", "args"}
        for name in call:
            if name in OURS:
                instead = f" and use `{OURS[name]}`" if OURS[name] else ""
                raise DiffalignError(
                    f"{name!r} is set by diffalign itself; leave it out of the call's arguments{instead}."
                )
            if name not in allowed:
                raise unknown(f"argument of {self.family}", name, allowed)
        return dict(call)

    def _spread(self, size: int) -> dict[str, Any]:
        """One negative prompt for each prompt: pipelines want lists with lists."""
        texts = {k: v for k, v in self.call.items() if k.startswith("negative_prompt") and isinstance(v, str)}
        return {name: [text] * size for name, text in texts.items()}

    def _denoise(self, name: str, *args: Any, **kwargs: Any) -> Any:
        assert self.watch is not None
        return self.watch.denoise(name, args, kwargs)

    def _watch_encoder(self) -> None:
        original = self.pipe.encode_prompt

        def encode(*args: Any, **kwargs: Any) -> Any:
            return self.around_encoding(lambda: original(*args, **kwargs))

        @functools.wraps(original)
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            assert self.watch is not None
            return self.watch.encode(encode, args, kwargs)

        self.pipe.__dict__["encode_prompt"] = encode_prompt

    def _watched_scheduler(self, scheduler: Any) -> Any:
        """The scheduler with its class replaced, so that copies of it are watched as well."""
        base, shell = type(scheduler), self
        names = inspect.signature(base.step)

        @functools.wraps(base.set_timesteps)
        def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
            base.set_timesteps(self, *args, **kwargs)
            if shell.timesteps is not None:
                self.timesteps = shell.timesteps.to(self.timesteps)
            self.all_timesteps, self.all_sigmas = self.timesteps, getattr(self, "sigmas", None)
            keep = shell.watch.keep if shell.watch else None
            if keep is not None:
                self.timesteps = self.timesteps[list(keep)]
                if self.all_sigmas is not None and len(self.all_sigmas) > len(self.all_timesteps):
                    self.sigmas = self.all_sigmas[[*keep, keep[-1] + 1]]

        @functools.wraps(base.step)
        def step(self: Any, *args: Any, **kwargs: Any) -> StepResult:
            assert shell.watch is not None
            given = names.bind(self, *args, **kwargs).arguments
            if self is not shell.scheduler:
                raise DiffalignError(_COPIED.format(shell.family))
            following = shell.watch.step(given["model_output"], given["timestep"], given["sample"])
            return StepResult((following, following))

        scheduler.__class__ = type(base.__name__, (base,), {"set_timesteps": set_timesteps, "step": step})
        return scheduler


_COPIED = (
    "{}: this pipeline steps a second stream of latents with a copy of its scheduler (sound beside a video, say). "
    "diffalign aligns one stream and would get this model wrong. Use a pipeline of the family with one stream."
)


def view(module: nn.Module) -> nn.Module:
    """The module with a tree of its own over the same weights, frozen; hooks of offloading are left behind."""
    from accelerate.hooks import remove_hook_from_module

    module = getattr(module, "_orig_mod", module)
    tensors = [*module.parameters(), *module.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise DiffalignError(
            f"the weights of {type(module).__name__} are offloaded one layer at a time. Give diffalign the pipeline "
            "before enable_sequential_cpu_offload(), or free memory by `offload: true`."
        )
    shared = {id(t): _same(t) for t in tensors}
    own: nn.Module = copy.deepcopy(module, shared)
    return remove_hook_from_module(own, recurse=True).eval()  # type: ignore[no-any-return]


def _same(tensor: Tensor) -> Tensor:
    if type(tensor) is nn.Parameter:
        return nn.Parameter(tensor.detach(), requires_grad=False)
    return tensor


def _private(pipeline: DiffusionPipeline) -> Any:
    shell = copy.copy(pipeline)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            shell.__dict__[name] = view(part)
    silent = {"safety_checker": None, "watermark": None}
    shell.__dict__.update({name: value for name, value in silent.items() if name in shell.__dict__})
    shell.__dict__.update(_all_hooks=[], _progress_bar_config={"disable": True})
    return shell


def _denoisers(pipeline: DiffusionPipeline) -> list[str]:
    modules = [name for name, part in pipeline.components.items() if isinstance(part, nn.Module)]
    found = [name for name in modules if name.startswith(("unet", "transformer"))]
    found = found or [name for name in ("prior", "decoder") if name in modules]
    if not found or getattr(pipeline, "scheduler", None) is None:
        raise DiffalignError(
            f"{type(pipeline).__name__} has no denoiser that diffalign can train: it needs a `unet`, `transformer`, "
            f"`prior` or `decoder` and a `scheduler`, and has {', '.join(pipeline.components) or 'no parts'}."
        )
    return sorted(found)


def _proxy(module: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """The module with another forward: pipelines read its config, its dtype and its class."""
    proxy = copy.copy(module)
    proxy.__dict__["forward"] = forward
    return proxy


def _corner(decode: Callable[..., Any], side: int = 4) -> Callable[..., Any]:
    """`decode` (of latents (..., h, w)) at the cost of a corner; what is in its pictures does not count."""

    def corner(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        part = z[..., :side, :side]
        made = decode(part, *args, **kwargs)
        size = [n * z.shape[k] // part.shape[k] for k, n in zip((-2, -1), made[0].shape[-2:], strict=True)]
        blank = made[0].new_zeros(*made[0].shape[:-2], *size)
        return (blank,) if type(made) is tuple else type(made)(blank)

    return corner


def _is_stateful(part: Any) -> bool:
    """Whether a part remembers things from call to call, like a guider does; such parts start every call anew."""
    return isinstance(part, ConfigMixin) and not isinstance(part, nn.Module | SchedulerMixin)
