"""A config's keys reach the objects they are for."""

from __future__ import annotations

import pytest
from accelerate import Accelerator

from diffalign import build, config


@pytest.mark.weights
@pytest.mark.parametrize(("text", "call"), [("", {"negative_prompt": ""}), (None, {})])
def test_the_empty_negative_prompt_is_one(text: str | None, call: dict[str, str]):
    settings = config.load("emoji-ddpo", ["steps=2", "rule.quiet_last=0"])
    settings = settings.model_copy(update={"negative_prompt": text})
    found = build.policy(settings, Accelerator(cpu=True)).shell.call
    assert {name: value for name, value in found.items() if name == "negative_prompt"} == call
