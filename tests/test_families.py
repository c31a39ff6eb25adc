"""Every model family through the policy: its own output, its pictures, gradients, mixed batches, LoRA files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from diffalign.policy import Policy
from diffalign.steps import FlowSDE

from .families import FAMILIES, Family
from .families.compare import (
    LORA,
    SAMPLES,
    arguments,
    deviation,
    encode,
    error,
    own,
    perturbed,
    policy,
    run,
    walked,
)
from .families.stable_diffusion import stable_diffusion_inpaint

GUIDANCE = ["guided", "unguided"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


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


def test_replay_reproduces_the_pipelines_own_output(family: Family) -> None:
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
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with perturbed(ours):
        for of in ([x], ours.trainable()):
            assert_gradient(lambda: (ours.predict(x, time, cond).double() * weights).sum(), of)


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
def test_every_family_has_a_template_and_takes_a_vector_of_timesteps_in_one_call(family: Family) -> None:
    ours = policy(family.name)
    assert "predict: template" in ours.describe()
    x, time, cond = ours.noise([0, 1, 2]), ours.grid.timesteps, encode(ours, family, 3)
    ours.predict(x, time[[0, 1, 2]], cond)
    calls: list[int] = []
    hook = ours.denoiser.register_forward_pre_hook(lambda module, args: calls.append(1))
    ours.predict(x, time[[1, 1, 1]], cond)
    one = len(calls)
    ours.predict(x, time[[0, 1, 2]], cond)
    hook.remove()
    assert len(calls) == 2 * one > 0


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
    with perturbed(ours):
        end = walked(ours, base.start, encode(ours, family, SAMPLES))
        ours.save(tmp_path)
    plain = family.make()
    load_lora(plain, tmp_path)
    theirs = run(plain, family, family.call)
    assert error(end, theirs.end) <= 1e-5
    assert error(end, base.end) > 1e-2


@torch.no_grad()
def test_reference_is_the_pipeline_without_the_adapter(family: Family) -> None:
    ours, theirs = policy(family.name), own(family.name, "guided")
    cond = encode(ours, family, SAMPLES)
    with perturbed(ours):
        with ours.using("reference"):
            assert error(walked(ours, theirs.start, cond), theirs.end) <= 1e-5
        assert error(walked(ours, theirs.start, cond), theirs.end) > 1e-2


def test_the_pipeline_that_was_given_stays_as_it_was(family: Family) -> None:
    pipe = family.make()
    ours = Policy(pipe, steps=family.steps, call=family.call, lora=LORA)
    state = torch.get_rng_state()
    cond = encode(ours, family, 2)
    with perturbed(ours):
        ours.decode(walked(ours, ours.noise([0, 1]), cond))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(run(pipe, family, family.call).pictures, own(family.name, "guided").pictures)


@pytest.mark.parametrize("name", ["Wan", "Sana", "StableDiffusion3", "Flux"])
def test_the_stochastic_sampler_of_flows_has_bounded_noise(name: str) -> None:
    """The first level of Wan's and Sana's schedulers is just below 1, where t / (1 - t) explodes."""
    family = FAMILIES[name]
    ours = Policy(family.make(), steps=20, call=arguments(family, "guided"))
    encode(ours, family, 1)
    std = FlowSDE(0.7).std(ours.grid)
    assert float(std.max()) < 1
    assert float(std.min()) > 0
