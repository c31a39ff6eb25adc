"""Every model family through the policy: its own output, its pictures, gradients, mixed batches, its LoRA files.

The yardstick is the untouched pipeline, run by its own `__call__` with a first-order deterministic scheduler.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from peft import PeftModel
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.policy import LoraSpec, Policy
from diffalign.steps import ODE
from diffalign.walk import walk

from .families import FAMILIES, TRAPS, Family
from .families.stable_diffusion import stable_diffusion_inpaint

LORA = LoraSpec(rank=2, alpha=4)
SAMPLES = 3
GUIDANCE = ["guided", "unguided"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


class Own(NamedTuple):
    """What a pipeline made by itself: initial and final latents, and the pictures or frames."""

    start: Tensor
    end: Tensor
    pictures: Tensor


def first_order(scheduler: Any, steps: int) -> tuple[Any, dict[str, Any]]:
    """A deterministic scheduler with the noise levels of the published one, and arguments that set its grid.

    DDIM's own step takes neighbours by a fixed stride, which is wrong for linearly spaced timesteps; there
    DPM-Solver++ of order 1 is the same rule (Lu et al. 2022, section 3).
    """
    config = scheduler.config
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler | CogVideoXDDIMScheduler):
        return scheduler, {}
    if config.get("use_flow_sigmas"):
        own = type(scheduler).from_config(config, solver_order=1, disable_corrector=list(range(steps)))
        return own, {}
    ddim = DDIMScheduler.from_config(config, clip_sample=False)
    if config.timestep_spacing != "linspace":
        return ddim, {}
    ddim.set_timesteps(steps)
    return DPMSolverMultistepScheduler.from_config(config, solver_order=1), {
        "timesteps": ddim.timesteps.tolist()
    }


def run(pipe: Any, family: Family, call: dict[str, Any]) -> Own:
    """The pipeline's own `__call__`."""
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler, grid = first_order(pipe.scheduler, family.steps)
    step, seen = pipe.scheduler.step, []

    @functools.wraps(step)
    def watched(model_output: Tensor, timestep: Tensor, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = step(model_output, timestep, sample, *args, **kwargs)
        seen.append((sample, result[0]))
        return result

    pipe.scheduler.step = watched
    generators = [torch.Generator().manual_seed(seed) for seed in range(SAMPLES)]
    given = {**call, **family.inputs(SAMPLES), "num_inference_steps": family.steps, **grid}
    pictures = pipe(**given, generator=generators, output_type="pt", return_dict=False)[0]
    return Own(seen[0][0], seen[-1][1], pictures)


def arguments(family: Family, guidance: str) -> dict[str, Any]:
    return family.call if guidance == "guided" else family.call_unguided


@functools.cache
def own(name: str, guidance: str) -> Own:
    family = FAMILIES[name]
    return run(family.make(), family, arguments(family, guidance))


@functools.cache
def policy(name: str, guidance: str = "guided", predict: str = "auto") -> Policy:
    family = FAMILIES[name]
    call = arguments(family, guidance)
    ours = Policy(family.make(), steps=family.steps, call=call, lora=LORA, predict=predict)
    encode(ours, family, 2)
    return ours


def encode(policy: Policy, family: Family, n: int, first: int = 0) -> Any:
    inputs = family.inputs(n, first)
    return policy.encode(inputs.pop("prompt", None), **inputs)


@torch.no_grad()
def walked(policy: Policy, start: Tensor, cond: Any) -> Tensor:
    """The end of the deterministic walk from these latents."""
    for taken in walk(policy, ODE(), start, cond, range(len(start))):
        end = taken.next
    return end


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest deviation, relative to numbers above 1."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1))


def deviation(family: Family, predict: str = "auto") -> tuple[float, float]:
    """The errors of latents and pictures of a walk against the pipeline's own."""
    pipe = family.make()
    ours = Policy(pipe, steps=family.steps, call=family.call, lora=LORA, predict=predict)
    cond = encode(ours, family, SAMPLES)
    theirs = run(pipe, family, family.call)
    end = walked(ours, theirs.start, cond)
    return error(end, theirs.end), error(ours.decode(end), theirs.pictures)


def perturb(policy: Policy) -> None:
    """Give the adapter weights that matter, as after training."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("guidance", GUIDANCE)
def test_walk_reproduces_the_pipelines_own_output(family: Family, guidance: str) -> None:
    theirs, ours = own(family.name, guidance), policy(family.name, guidance)
    end = walked(ours, theirs.start, encode(ours, family, SAMPLES))
    assert error(end, theirs.end) <= 1e-5
    assert error(ours.decode(end), theirs.pictures) <= 1e-5


VARIANTS = [
    ("StableDiffusion", {"guidance_rescale": 0.7}),
    ("StableDiffusionXL", {"negative_prompt": "two dogs at night", "height": 32}),
    ("StableDiffusion3", {"negative_prompt": "cat", "width": 32}),
    ("Flux", {"negative_prompt": "two dogs", "true_cfg_scale": 4.0}),
    ("LTX", {"negative_prompt": "cat", "guidance_rescale": 0.7}),
    ("HunyuanVideo", {"true_cfg_scale": 3.0}),
    ("Lumina2", {"cfg_normalization": False}),
    ("ZImage", {"cfg_normalization": True}),
    ("ZImage", {"cfg_truncation": 0.5}),
]


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_walk_reproduces_other_kinds_of_guidance(name: str, changes: dict[str, Any]) -> None:
    assert max(deviation(replace(FAMILIES[name], call={**FAMILIES[name].call, **changes}))) <= 1e-5


def test_replay_and_template_give_the_same_number(family: Family) -> None:
    theirs, ours = own(family.name, "guided"), policy(family.name, predict="replay")
    end = walked(ours, theirs.start, encode(ours, family, SAMPLES))
    assert error(end, theirs.end) <= 1e-5


def test_decode_equals_the_pipelines_own_pictures(family: Family) -> None:
    theirs = own(family.name, "guided")
    pictures = policy(family.name).decode(theirs.end)
    assert pictures.dtype == torch.float32
    assert error(pictures, theirs.pictures) <= 1e-6


def slope(function: Any, at: list[Tensor], direction: list[Tensor], size: float) -> float:
    """The central difference of a function of `at`, which is left as it was."""
    values = []
    with torch.no_grad():
        for sign in (size, -size):
            before = [part.clone() for part in at]
            for part, way in zip(at, direction, strict=True):
                part.add_(sign * way)
            values.append(float(function()))
            for part, old in zip(at, before, strict=True):
                part.copy_(old)
    return (values[0] - values[1]) / (2 * size)


def assert_gradient(function: Any, of: list[Tensor], size: float = 1e-3) -> None:
    """The gradient is there, and is the slope of the function in its own direction."""
    gradient = torch.autograd.grad(function(), of, allow_unused=True)
    present = [torch.zeros_like(p) if g is None else g for p, g in zip(of, gradient, strict=True)]
    norm = torch.cat([part.flatten() for part in present]).norm()
    assert norm > 1e-4
    direction = [part / norm for part in present]
    assert slope(function, of, direction, size) == pytest.approx(float(norm), rel=0.01)


def test_gradients_reach_the_latents_through_decode(family: Family) -> None:
    ours, end = policy(family.name), own(family.name, "guided").end
    latents = (end / end.std()).requires_grad_()
    weights = torch.randn(ours.decode(latents).shape, generator=torch.Generator().manual_seed(0))
    assert_gradient(lambda: (ours.decode(latents).double() * weights).sum(), [latents])


@pytest.mark.parametrize("predict", ["auto", "replay"])
def test_gradients_reach_latents_and_adapter_through_predict(family: Family, predict: str) -> None:
    ours = policy(family.name, predict=predict)
    cond, x = encode(ours, family, 2), ours.noise([1, 2]).requires_grad_()
    time = ours.grid.timesteps[[1, 1]]
    before = ours.adapter_state()
    perturb(ours)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    try:
        for of in ([x], ours.trainable()):
            assert_gradient(lambda: (ours.predict(x, time, cond).double() * weights).sum(), of)
    finally:
        ours.load_adapter_state(before)


@torch.no_grad()
def test_mixed_batches_give_what_each_sample_gives_alone(family: Family) -> None:
    """Prompts of different length and different timesteps in one call."""
    ours = policy(family.name)
    n = len(family.prompts)
    x, time = ours.noise(range(n)), ours.grid.timesteps[torch.arange(n) % ours.grid.steps]
    alone = [encode(ours, family, 1, first) for first in range(n)]
    single = torch.cat([ours.predict(x[[k]], time[[k]], alone[k]) for k in range(n)])
    together = encode(ours, family, n)
    assert error(ours.predict(x, time, together), single) <= 1e-5
    assert error(ours.predict(x, time, type(together).cat(alone)), single) <= 1e-5
    order = [2, 0, 3]
    assert error(ours.predict(x[order], time[order], together[order]), single[order]) <= 1e-5


@torch.no_grad()
def test_masked_image_of_inpainting_is_drawn_alike_for_every_sample_and_every_call() -> None:
    family = FAMILIES["StableDiffusionInpaint"]
    ours = Policy(stable_diffusion_inpaint(log_variance=0.0), steps=family.steps, call=family.call, lora=LORA)
    x, time = ours.noise([5, 6]), ours.grid.timesteps[[0, 2]]
    together = ours.predict(x, time, encode(ours, family, 2))
    for row in range(2):
        alone = ours.predict(x[[row]], time[[row]], encode(ours, family, 1, first=row))
        assert error(together[[row]], alone) <= 1e-5


@torch.no_grad()
def test_a_vector_of_timesteps_takes_as_few_denoiser_calls_as_one(family: Family) -> None:
    ours = policy(family.name)
    if "template" not in ours.describe() or not family.vector_timesteps:
        pytest.skip("one timestep per call")
    calls: list[int] = []
    hook = ours.denoiser.register_forward_pre_hook(lambda module, args: calls.append(1))
    counts = []
    for times in ([1, 1, 1], [0, 1, 2]):
        calls.clear()
        ours.predict(ours.noise([0, 1, 2]), ours.grid.timesteps[times], encode(ours, family, 3))
        counts.append(len(calls))
    hook.remove()
    assert counts[0] == counts[1] > 0


def load_lora(pipe: Any, folder: Path) -> None:
    """By what the pipeline has: diffusers' loader of pipelines, else of models, else peft's own."""
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(folder)
    elif hasattr(pipe.transformer, "load_lora_adapter"):
        pipe.transformer.load_lora_adapter(folder, prefix=None)
    else:
        PeftModel.from_pretrained(pipe.transformer, folder)


def test_saved_lora_does_the_same_in_a_plain_pipeline(family: Family, tmp_path: Path) -> None:
    base, ours = own(family.name, "guided"), policy(family.name)
    before = ours.adapter_state()
    perturb(ours)
    try:
        end = walked(ours, base.start, encode(ours, family, SAMPLES))
        ours.save(tmp_path)
    finally:
        ours.load_adapter_state(before)
    plain = family.make()
    load_lora(plain, tmp_path)
    theirs = run(plain, family, family.call)
    assert error(end, theirs.end) <= 1e-5
    assert error(end, base.end) > 1e-2


@torch.no_grad()
def test_reference_is_the_pipeline_without_the_adapter(family: Family) -> None:
    ours, theirs = policy(family.name), own(family.name, "guided")
    before = ours.adapter_state()
    perturb(ours)
    try:
        cond = encode(ours, family, SAMPLES)
        with ours.using("reference"):
            assert error(walked(ours, theirs.start, cond), theirs.end) <= 1e-5
        assert error(walked(ours, theirs.start, cond), theirs.end) > 1e-2
    finally:
        ours.load_adapter_state(before)


REFUSED = {
    "LTX2": "second stream of latents with a copy of its scheduler",
    "HunyuanImage": "a guider with momentum",
}
"""The traps that are refused, and the cause that the refusal must name; the others must be right."""
TEMPLATED = {"CogVideoXDynamicGuidance"}
"""The traps whose template explains every step; for the others it must be refused."""


@pytest.mark.parametrize("predict", ["auto", "replay"])
@pytest.mark.parametrize("name", sorted(TRAPS.keys() - REFUSED.keys()))
def test_trap_is_right(name: str, predict: str) -> None:
    assert max(deviation(TRAPS[name], predict)) <= 1e-5


@pytest.mark.parametrize("predict", ["auto", "replay"])
@pytest.mark.parametrize("name", REFUSED)
def test_trap_is_refused_by_name_and_cause(name: str, predict: str) -> None:
    with pytest.raises(DiffalignError, match=f"{name}Pipeline.*{REFUSED[name]}"):
        deviation(TRAPS[name], predict)


@pytest.mark.parametrize("name", sorted(TEMPLATED))
def test_template_of_a_trap_is_right(name: str) -> None:
    assert max(deviation(TRAPS[name], "template")) <= 1e-5


@pytest.mark.parametrize("name", sorted(TRAPS.keys() - TEMPLATED))
def test_template_of_a_trap_is_refused_by_name(name: str) -> None:
    trap = TRAPS[name]
    with pytest.raises(DiffalignError, match=type(trap.make()).__name__):
        deviation(trap, "template")


def test_both_transformers_of_wan22_are_trained_and_saved(tmp_path: Path) -> None:
    trap = TRAPS["Wan22"]
    ours = Policy(trap.make(), steps=trap.steps, call=trap.call, lora=LORA)
    perturb(ours)
    ours.save(tmp_path)
    plain = trap.make()
    plain.load_lora_weights(tmp_path)
    plain.load_lora_weights(tmp_path / "transformer_2", load_into_transformer_2=True)
    theirs = run(plain, trap, trap.call)
    end = walked(ours, theirs.start, encode(ours, trap, SAMPLES))
    assert error(end, theirs.end) <= 1e-5
