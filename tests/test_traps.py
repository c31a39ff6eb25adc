"""Pipelines that do something special in their loop: each is right, or refused by name and cause."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest

from diffalign.errors import DiffalignError
from diffalign.policy import Policy

from .families import TRAPS
from .families.compare import LORA, SAMPLES, deviation, encode, error, perturbed, run, walked
from .families.traps import hunyuan_image

pytestmark = pytest.mark.usefixtures("one_thread")

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


def test_hunyuan_image_is_right_where_momentum_never_starts() -> None:
    calm = replace(TRAPS["HunyuanImage"], make=functools.partial(hunyuan_image, momentum_from=50))
    assert max(deviation(calm)) <= 1e-5


@pytest.mark.parametrize("name", sorted(TEMPLATED))
def test_template_of_a_trap_is_right(name: str) -> None:
    assert max(deviation(TRAPS[name], "template")) <= 1e-5


@pytest.mark.parametrize("name", sorted(TRAPS.keys() - TEMPLATED))
def test_template_of_a_trap_is_refused_by_name(name: str) -> None:
    trap = TRAPS[name]
    with pytest.raises(DiffalignError, match=type(trap.make()).__name__):
        deviation(trap, "template")


def test_both_transformers_of_wan22_are_trained_and_saved(tmp_path: Path) -> None:
    trap, plain = TRAPS["Wan22"], TRAPS["Wan22"].make()
    ours = Policy(trap.make(), steps=trap.steps, call=trap.call, lora=LORA)
    with perturbed(ours):
        ours.save(tmp_path)
        plain.load_lora_weights(tmp_path)
        plain.load_lora_weights(tmp_path / "transformer_2", load_into_transformer_2=True)
        theirs = run(plain, trap, trap.call)
        end = walked(ours, theirs.start, encode(ours, trap, SAMPLES))
    assert error(end, theirs.end) <= 1e-5
