"""A denoising policy made from any diffusers pipeline: encode, predict, decode, and what is trained.

Dimensions: B samples, N steps.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from diffalign.errors import DiffalignError, told, unknown
from diffalign.grid import Grid
from diffalign.models import weights
from diffalign.models.adapters import POLICY, Adapters, LoraSpec, spec_text
from diffalign.models.attention import set_attention
from diffalign.models.capture import Capture
from diffalign.models.conditioning import Batch, Conditioning
from diffalign.models.encoder import Encoder
from diffalign.models.loading import load_pipeline, own_guidance
from diffalign.models.placement import Placement, dtype_of
from diffalign.models.predictor import Denoisers, Predictor
from diffalign.models.shell import Shell
from diffalign.seeds import normal

__all__ = ["Conditioning", "LoraSpec", "Policy"]

PREDICT = ("auto", "replay", "template")
MIXED = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


class Policy:
    """A pipeline's denoiser as a policy over denoising steps; the pipeline itself stays untouched.

    timesteps are those of a model distilled for them alone (diffusion models only; None: as its scheduler sets them);
    `call` are further arguments of the pipeline (height, negative_prompt, image, ...); `lora=None`
    trains all weights beside a frozen copy, `lora=False` nothing. predict="auto" takes the template
    where it is verified at every step, and replays the pipeline's own loop elsewhere.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        *,
        steps: int,
        timesteps: Sequence[int] | None = None,
        guidance_scale: float | None = None,
        call: dict[str, Any] | None = None,
        lora: LoraSpec | Literal[False] | None = LoraSpec(),  # noqa: B008 - frozen
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
        self._guidance = _guidance_name(pipeline)
        if guidance_scale is not None:
            arguments[self._guidance] = guidance_scale
        self.shell = Shell(pipeline, arguments, steps, timesteps)
        self.device = torch.device(device) if device is not None else self.shell.device
        self.placement = Placement(self.shell, self.device, dtype_of(dtype), offload)
        set_attention(self.shell.denoisers, attention, self.device)
        self.adapters = Adapters(self.shell.denoisers, lora)
        for name in self.shell.denoisers if gradient_checkpointing else ():
            self.adapters.module(name).enable_gradient_checkpointing()  # type: ignore[operator]
        denoise = Denoisers(self.adapters, self.device, MIXED[mixed_precision], compile)
        self.capture = Capture(self.shell, denoise)
        self.encoder, self.predictor = Encoder(self.capture), Predictor(self.capture, denoise)
        self.denoiser_calls, self._predict, self._probed = 0, predict, False
        if self.encoder.reads_text:
            self._check_guidance(guidance_scale)
            with self._taken(steps, arguments):
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
        parts: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Policy:
        """A policy from a folder, a hub id, or a packaged model ("emoji", "emoji-turbo"); settings as in `Policy`."""
        if settings.get("guidance_scale") is None:
            settings["guidance_scale"] = own_guidance(model)
        pipeline = load_pipeline(model, revision, variant, dtype, quantize, parts)
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
        name = self._guidance
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
        if prompts is not None:
            return self.encoder.texts(prompts)
        batch = self.encoder.embeds(embeds)
        if not self._probed:
            self._probe(batch[[0, min(1, batch.size - 1)]])
        return self.capture.prepared(Conditioning(batch))

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts of which some are longer than the model takes, before any is drawn."""
        self.encoder.check(prompts)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Initial latents (B, *latent_shape): those of a sample depend on its seed alone."""
        return (normal(seeds, self.latent_shape) * self.grid.initial).to(self.device, self.dtype)

    def predict(self, x: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The pipeline's own guided output (B, ...) at latents x (B, ...) and timesteps t (B,) of the grid."""
        if not len(x) == len(t) == len(cond):
            raise DiffalignError(f"predict got {len(x)} latents, {len(t)} timesteps and {len(cond)} prompts.")
        self.denoiser_calls += len(x)
        return self.predictor(x, t.to(x.device), cond)

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

    def differs(self, name: str = POLICY) -> bool:
        """Whether the policy, or the snapshot of this name, predicts otherwise than the reference."""
        return self.adapters.differs(name)

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

    @property
    def version(self) -> str:
        """Which weights were trained on top of the model, in twelve digits; "" where they change nothing."""
        return weights.version(self.adapter_state()) if self.differs() else ""

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
        name = self._guidance
        guided = scale is not None and scale > 1 and name != "guidance_scale"
        if guided and "negative_prompt" not in self.shell.call:
            raise DiffalignError(
                f"{self.shell.family} guides by {name} only with a negative_prompt: set one (' ' will do), or leave "
                "guidance_scale out."
            )

    @contextlib.contextmanager
    def _taken(self, steps: int, arguments: dict[str, Any]) -> Iterator[None]:
        """Say what the pipeline's own code does not like about its arguments."""
        try:
            yield
        except (DiffalignError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            given = ", ".join(
                f"{name}={value!r:.60}" for name, value in {"steps": steps, **arguments}.items()
            )
            raise DiffalignError(
                f"{self.shell.family} does not take {given}. It says {told(error)} Change what that names."
            ) from error

    def _probe(self, batch: Batch) -> None:
        self.capture.probe(batch, self._predict)
        self._probed = True

    def _need_probe(self) -> None:
        if not self._probed:
            raise DiffalignError(
                f"{self.shell.family} came without text encoders: encode some embeddings first, its grid and latents "
                "are learnt from them."
            )


def _check_precision(dtype: torch.dtype | None, mixed: str, lora: LoraSpec | Literal[False] | None) -> None:
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


def _guidance_name(pipeline: DiffusionPipeline) -> str:
    """The argument that scales guidance: true CFG where the denoiser was not distilled with guidance."""
    parameters = inspect.signature(type(pipeline).__call__).parameters
    config = getattr(getattr(pipeline, "transformer", None), "config", None)
    distilled = getattr(config, "guidance_embeds", False)
    return "true_cfg_scale" if "true_cfg_scale" in parameters and not distilled else "guidance_scale"
