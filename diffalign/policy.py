"""A denoising policy made from any diffusers pipeline: encode, predict, decode, and what is trained.

Dimensions: B samples, N steps.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from diffalign import weights
from diffalign.adapters import Adapters, LoraSpec, spec_text
from diffalign.attention import set_attention
from diffalign.capture import Capture
from diffalign.conditioning import Batch, Conditioning
from diffalign.errors import DiffalignError, unknown
from diffalign.grid import Grid
from diffalign.lengths import PromptLengths
from diffalign.loading import load_pipeline
from diffalign.placement import Placement, dtype_of
from diffalign.seeds import normal
from diffalign.shell import Shell
from diffalign.stub import map_tensors

__all__ = ["Conditioning", "LoraSpec", "Policy"]

PREDICT = ("auto", "replay", "template")
MIXED = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


class Policy:
    """A pipeline's denoiser as a policy over denoising steps; the pipeline itself stays untouched.

    `call` are further arguments of the pipeline (height, negative_prompt, image, ...); `lora=None`
    trains all weights beside a frozen copy. predict="auto" takes the template where it is verified
    at every step, and replays the pipeline's own loop elsewhere.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        *,
        steps: int,
        guidance_scale: float | None = None,
        call: dict[str, Any] | None = None,
        lora: LoraSpec | None = LoraSpec(),  # noqa: B008 - frozen
        predict: Literal["auto", "replay", "template"] = "auto",
        dtype: str | torch.dtype | None = None,
        mixed_precision: Literal["no", "fp16", "bf16"] = "no",
        attention: str = "auto",
        gradient_checkpointing: bool = False,
        compile: bool = False,
        offload: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        if predict not in PREDICT:
            raise unknown("predict", predict, PREDICT)
        if mixed_precision not in MIXED:
            raise unknown("mixed_precision", mixed_precision, MIXED)
        _check_precision(dtype_of(dtype), mixed_precision, lora)
        arguments = dict(call or {})
        if guidance_scale is not None:
            arguments[_guidance_name(pipeline)] = guidance_scale
        self.shell = Shell(pipeline, arguments, steps)
        self._check_guidance(guidance_scale)
        self.device = torch.device(device) if device is not None else self.shell.device
        self.placement = Placement(self.shell, self.device, dtype_of(dtype), offload)
        set_attention(self.shell.denoisers, attention, self.device)
        self.autocast = MIXED[mixed_precision]
        self.adapters = Adapters(self.shell.denoisers, lora)
        self._compiled: dict[nn.Module, Any] = {}
        self._compile = compile
        for name in self.shell.denoisers if gradient_checkpointing else ():
            self.adapters.module(name).enable_gradient_checkpointing()  # type: ignore[operator]
        self.denoiser_calls = 0
        self.lengths = PromptLengths(self.shell.pipe)
        self.capture = Capture(self.shell, self._denoise)
        self.predict_mode = predict
        self._cache: dict[str, Batch] = {}
        self._probed = False
        self._vector: bool | None = None
        if self._has_text_encoder():
            self._probe(self.capture.learn_prompts())

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        revision: str | None = None,
        variant: str | None = None,
        dtype: str | torch.dtype | None = None,
        quantize: str | None = None,
        **settings: Any,
    ) -> Policy:
        """A policy from a folder, a hub id, or "emoji" (the packaged model); settings as in `Policy`."""
        pipeline = load_pipeline(model, revision, variant, dtype, quantize)
        return cls(pipeline, dtype=None if quantize else dtype, **settings)

    # --- what it is ---

    @property
    def grid(self) -> Grid:
        """Timesteps and noise levels that the pipeline sets for this number of steps."""
        self._need_probe()
        return self.capture.grid

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one sample's latents."""
        self._need_probe()
        return self.capture.latent_shape

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the pipeline keeps its latents."""
        self._need_probe()
        return self.capture.dtype

    @property
    def guidance_scale(self) -> float | None:
        """The guidance scale of the pipeline's call."""
        name = _guidance_name(self.shell)
        default = self.shell.parameters[name].default if name in self.shell.parameters else None
        value = self.shell.call.get(name, default)
        return float(value) if isinstance(value, int | float) else None

    @property
    def denoiser(self) -> nn.Module:
        """The module that is trained (the first, where a pipeline has two)."""
        return self.adapters.module(next(iter(self.shell.denoisers)))

    # --- the three seams ---

    def encode(self, prompts: Sequence[str] | None = None, **embeds: Any) -> Conditioning:
        """Conditioning of B prompts, or of embeddings in the pipeline's own arguments; text runs once a prompt."""
        if prompts is None:
            return self._encode_embeds(embeds)
        if isinstance(prompts, str) or not len(prompts):
            raise DiffalignError(f"encode needs a list of at least one prompt, got {prompts!r}.")
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._cache]
        if new:
            self._encode_new(new)
        distinct = list(dict.fromkeys(prompts))
        try:
            batch = Batch.cat([self._cache[prompt] for prompt in distinct])
        except DiffalignError:
            self._need_text_encoder(distinct)
            batch = self.capture.encode(distinct)
        return Conditioning(batch)[[distinct.index(prompt) for prompt in prompts]]

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Initial latents (B, *latent_shape): those of a sample depend on its seed alone."""
        scale = float(self.grid.noise[0]) if self.grid.flow else 1.0
        return (normal(seeds, self.latent_shape) * scale).to(self.device, self.dtype)

    def predict(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The pipeline's own guided output (B, ...) at latents x (B, ...) and timesteps t (B,) of the grid."""
        if not len(x) == len(t) == len(cond):
            raise DiffalignError(f"predict got {len(x)} latents, {len(t)} timesteps and {len(cond)} prompts.")
        self.denoiser_calls += len(x)
        t = t.to(x.device)
        if self.capture.template is None:
            return self._by_step(self._replay, x, t, cond)
        if self._takes_vectors(x, cond):
            return self._template(x, t, cond)
        return self._by_step(lambda x, t, cond: self._template(x, t[0], cond), x, t, cond)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) or videos (B, F, 3, H, W), float32 in [0, 1], by the pipeline's own code."""
        return self.capture.decode(latents)

    # --- variants and weights ---

    def using(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Predict as "policy", "reference" (what the pipeline was) or a snapshot, within the context."""
        return self.adapters.using(name)

    def snapshot(self, name: str) -> None:
        """Keep the policy of now under this name."""
        self.adapters.snapshot(name)

    @property
    def snapshots(self) -> list[str]:
        """The names of the snapshots."""
        return list(self.adapters.snapshots)

    def named_trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters, by name."""
        return self.adapters.named_parameters()

    def trainable(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return [parameter for _, parameter in self.named_trainable()]

    def adapter_state(self) -> dict[str, Tensor]:
        """A copy of the trained weights, for checkpoints."""
        return self.adapters.state()

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Take over weights from `adapter_state`."""
        self.adapters.load_state(state)

    def save(self, folder: str | Path) -> None:
        """Write the trained weights in diffusers' format."""
        weights.save(self.adapters, self.shell.pipeline_class, Path(folder))

    def load(self, folder: str | Path) -> None:
        """Read what `save` wrote."""
        weights.load(self.adapters, Path(folder))

    def free_text_encoders(self) -> None:
        """Drop the text encoders; prompts already encoded stay known."""
        self.placement.free_text_encoders()

    def describe(self) -> str:
        """What was inferred about this pipeline, and what is trained."""
        count = sum(parameter.numel() for parameter in self.trainable())
        lines = [
            f"{self.shell.family}, denoiser {', '.join(self.shell.denoisers)} ({type(self.denoiser).__name__})",
            f"trained: {spec_text(self.adapters)}, {count:,} parameters",
        ]
        if not self._probed:
            return "\n".join([*lines, "grid and predict: known after the first encode (no text encoder)"])
        kind = "flow" if self.grid.flow else f"variance preserving ({self.grid.target})"
        template = self.capture.template
        levels = ", ".join(f"{level:.3g}" for level in self.grid.noise.tolist())
        how = template.describe() if template else [f"because {self.capture.reason}"]
        return "\n".join(
            [
                *lines,
                f"latents {self.latent_shape} {self.dtype}, {self.grid.steps} steps, {kind}, noise levels {levels}",
                f"predict: {'template, verified at every step' if template else 'replay'}",
                *(f"  {line}" for line in how),
            ]
        )

    # --- inside ---

    def _check_guidance(self, scale: float | None) -> None:
        """True CFG without a negative prompt would be left out without a word."""
        name = _guidance_name(self.shell)
        guided = scale is not None and scale > 1 and name != "guidance_scale" and self._has_text_encoder()
        if guided and "negative_prompt" not in self.shell.call:
            raise DiffalignError(
                f"{self.shell.family} guides by {name} only with a negative_prompt: set one (' ' will do), or leave "
                "guidance_scale out."
            )

    def _denoise(self, name: str, args: Any, kwargs: Any) -> Any:
        module: Any = self.adapters.module(name)
        if self._compile:
            if module not in self._compiled:
                self._compiled[module] = torch.compile(module)
            module = self._compiled[module]
        if self.autocast is None:
            return module(*args, **kwargs)
        with torch.autocast(self.device.type, self.autocast):
            return _float(module(*args, **kwargs))

    def _template(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        template = self.capture.template
        assert template is not None
        captured = self.capture.captured(cond)
        calls = zip(template.names, template.arguments(x, t, captured), strict=True)
        outputs = [self._denoise(name, args, kwargs) for name, (args, kwargs) in calls]
        return template.output(outputs, x, self._index(t) if template.scheduled else None)

    def _replay(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self.capture.replay(x, int(self._index(t)[0]), cond)

    def _by_step(self, predict: Any, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """One call for each distinct timestep."""
        listed = t.tolist()
        if len(set(listed)) == 1:
            return predict(x, t, cond)  # type: ignore[no-any-return]
        groups = {
            value: [k for k, other in enumerate(listed) if other == value] for value in dict.fromkeys(listed)
        }
        outputs = torch.cat([predict(x[rows], t[rows], cond[rows]) for rows in groups.values()])
        order = [row for rows in groups.values() for row in rows]
        return torch.index_select(outputs, 0, torch.tensor(order, device=outputs.device).argsort())

    def _index(self, t: Tensor) -> Tensor:
        """(B,) grid indices of timesteps (B,)."""
        match = self.grid.timesteps[None] == t.detach().cpu().to(self.grid.timesteps.dtype).reshape(-1, 1)
        if not bool(match.any(1).all()):
            raise DiffalignError(
                f"timesteps {t.tolist()} are not all on the grid {self.grid.timesteps.tolist()}."
            )
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
        t = self.grid.timesteps[[0, -1]].to(x.device)
        x, cond = torch.cat([x, x]), cond[[0, 0]]
        try:
            together = self._template(x, t, cond)
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
        alone = torch.cat([self._template(x[[k]], t[k], cond[[k]]) for k in range(2)])
        error, scale = (together - alone).abs().max(), alone.abs().max()
        return bool(error <= (1e-4 if alone.dtype == torch.float32 and not self.autocast else 5e-2) * scale)

    def _encode_new(self, prompts: list[str]) -> None:
        self._need_text_encoder(prompts)
        for prompt in prompts:
            with self.lengths.checking(prompt):
                self._cache[prompt] = self.capture.encode([prompt])

    def _encode_embeds(self, embeds: dict[str, Any]) -> Conditioning:
        if not embeds:
            raise DiffalignError(
                "encode needs prompts, or embeddings under the pipeline's own argument names."
            )
        moved = {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in embeds.items()}
        size = len(next(iter(moved.values())))
        batch = self.capture.embeds(moved, size)
        if not self._probed:
            self._probe(batch[[0, min(1, size - 1)]])
        return Conditioning(batch)

    def _probe(self, batch: Batch) -> None:
        self.capture.probe(batch, self.predict_mode)
        self._probed = True

    def _need_probe(self) -> None:
        if not self._probed:
            raise DiffalignError(
                f"{self.shell.family} came without text encoders: encode some embeddings first, its grid and latents "
                "are learnt from them."
            )

    def _need_text_encoder(self, prompts: list[str]) -> None:
        if not self._has_text_encoder():
            raise DiffalignError(
                f"these prompts need the text encoders, which are not there: {prompts[:3]}. Encode all prompts before "
                "free_text_encoders(), together if they are used together, or give embeddings."
            )

    def _has_text_encoder(self) -> bool:
        parts = self.shell.pipe.components
        return "prompt" in self.shell.parameters and any(
            part is not None for name, part in parts.items() if name.startswith("text_encoder")
        )


def _check_precision(dtype: torch.dtype | None, mixed: str, lora: LoraSpec | None) -> None:
    """Refuse combinations that no hardware computes as meant."""
    half, computed = dtype in (torch.float16, torch.bfloat16), MIXED[mixed]
    if half and computed not in (None, dtype):
        raise DiffalignError(
            f"dtype {dtype} and mixed_precision {mixed} are two kinds of half precision; use one of them."
        )
    if half and computed is None and lora is None:
        raise DiffalignError(
            f"full fine-tuning trains float32 weights: with dtype {dtype} set mixed_precision to fp16 or bf16 as well."
        )


def _guidance_name(source: Any) -> str:
    """The argument that scales guidance: true CFG where the denoiser was not distilled with guidance."""
    parameters = (
        source.parameters
        if isinstance(source, Shell)
        else inspect.signature(type(source).__call__).parameters
    )
    pipe = source.pipe if isinstance(source, Shell) else source
    transformer = getattr(pipe, "transformer", None)
    distilled = getattr(getattr(transformer, "config", None), "guidance_embeds", False)
    return "true_cfg_scale" if "true_cfg_scale" in parameters and not distilled else "guidance_scale"


def _float(output: Any) -> Any:
    """What autocast made half precision, back in float32, as everything around the denoiser expects it."""
    return map_tensors(output, lambda tensor, _: tensor.float() if tensor.is_floating_point() else tensor)
