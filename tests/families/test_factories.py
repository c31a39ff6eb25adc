"""No tiny pipeline is degenerate: its output follows prompt, seed, guidance and timestep."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from . import FAMILIES, TRAPS, Family

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=FAMILIES | TRAPS, scope="module")
def made(request: pytest.FixtureRequest) -> tuple[Family, Any]:
    family = (FAMILIES | TRAPS)[request.param]
    pipe = family.make()
    pipe.set_progress_bar_config(disable=True)
    return family, pipe


def run(made: tuple[Family, Any], n: int = 1, first: int = 0, seed: int = 0, **changes: Any) -> torch.Tensor:
    """The pipeline's own pictures or frames, one seed a sample."""
    family, pipe = made
    generators = [torch.Generator().manual_seed(seed + first + sample) for sample in range(n)]
    arguments = {**family.call, "num_inference_steps": family.steps, **family.inputs(n, first), **changes}
    return torch.as_tensor(pipe(**arguments, generator=generators, output_type="pt")[0])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).pow(2).mean().sqrt())


def test_family_says_whether_the_pipeline_loads_lora(made: tuple[Family, Any]) -> None:
    assert made[0].lora == hasattr(made[1], "load_lora_weights")


def test_output_is_a_batch_of_pictures_or_frames_in_the_unit_range(made: tuple[Family, Any]) -> None:
    out = run(made, n=2)
    assert out.ndim == (5 if made[0].video else 4)
    assert len(out) == 2
    assert out.isfinite().all()
    assert torch.equal(out, out.clamp(0, 1))
    inside = ((out > 0.01) & (out < 0.99)).float().mean()
    assert inside > 0.5, f"saturated: only {inside:.2f} of all values inside (0, 1)"
    assert out.std() > 0.05, f"flat: std {out.std():.3f}"


def test_output_follows_prompt_seed_guidance_and_the_trap(made: tuple[Family, Any]) -> None:
    family, _ = made
    out = run(made)
    assert torch.equal(out, run(made))
    others = {"prompt": family.inputs(1, 1), "seed": {"seed": 7}}
    others |= {"guidance": family.unguided} if family.unguided else {}
    others |= {"the trap": family.disarm} if family.disarm else {}
    for cause, changes in others.items():
        other = run(made, **changes)
        assert distance(out, other) > 1e-3, f"{cause} changes nothing: {distance(out, other):.2e}"


def denoiser_calls(made: tuple[Family, Any]) -> tuple[Any, list[dict[str, Any]], str]:
    """The denoiser, the arguments of its calls for two prompts, and which of them is the timestep."""
    denoiser = getattr(made[1], "transformer", None) or made[1].unet
    calls: list[dict[str, Any]] = []

    def remember(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments))

    hook = denoiser.register_forward_pre_hook(remember, with_kwargs=True)
    run(made, n=2)
    hook.remove()
    return denoiser, calls, "timestep" if "timestep" in calls[0] else "t"


def output(denoiser: Any, **arguments: Any) -> Any:
    with torch.no_grad():
        return denoiser(**{**arguments, "return_dict": False})[0]


def test_denoiser_follows_the_timestep_also_as_a_vector(made: tuple[Family, Any]) -> None:
    denoiser, calls, name = denoiser_calls(made)
    call, largest = calls[0], max(call[name].max() for call in calls)
    rows = len(output(denoiser, **call))
    times = torch.linspace(0.2, 0.9, rows) * largest
    single = [output(denoiser, **{**call, name: time.expand(rows)}) for time in times]
    change = min(distance(single[0][row], single[-1][row]) for row in range(rows))
    assert change > 1e-3, f"the timestep changes the output by {change:.2e}"
    together = output(denoiser, **{**call, name: times})
    assert all(distance(together[row], single[row][row]) < 1e-5 for row in range(rows))


def test_hunyuan_image_reaches_the_steps_where_guidance_has_momentum() -> None:
    family = TRAPS["HunyuanImage"]
    pipe = family.make()
    run((family, pipe))
    assert pipe.guider._is_apg_enabled()
    assert pipe.guider.momentum_buffer.running_average.abs().max() > 0
