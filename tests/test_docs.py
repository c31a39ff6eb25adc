"""The documents say what the code does: every key of a config, and snippets that run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import BaseModel
from toys import Chain, ChainPolicy, train

from diffalign.config import FREE_ON_RESUME, LoraConfig, RunConfig
from diffalign.configfile import Yaml12
from diffalign.registry import algorithm, reward
from diffalign.reward import score

ROOT = Path(__file__).parents[1]
CONFIG = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def documented() -> dict[str, str]:
    """Key -> default of every line of the table in docs/config.md."""
    return dict(re.findall(r"^\| `([\w.]+)` \|.*?\| (`[^`]*`|required) \|", CONFIG, re.MULTILINE))


def defaults() -> dict[str, Any]:
    """Key -> default of every key there is; those of `lora` below their name."""
    fields = {**RunConfig.model_fields, **{f"lora.{k}": f for k, f in LoraConfig.model_fields.items()}}
    return {
        key: "required" if field.is_required() else field.get_default(call_default_factory=True)
        for key, field in fields.items()
    }


def test_every_key_is_documented_and_every_documented_key_exists():
    assert documented().keys() == defaults().keys()


@pytest.mark.parametrize(("key", "text"), documented().items(), ids=lambda value: str(value)[:20])
def test_documented_defaults_are_the_defaults(key, text):
    said, default = yaml.load(text.strip("`"), Yaml12), defaults()[key]
    if isinstance(default, BaseModel):
        said = type(default)(**said)
    assert said == default


def test_the_keys_that_may_change_on_resuming_are_named():
    (sentence,) = re.findall(r"What may change [^:]*: ([^.]*)\.", CONFIG)
    assert set(re.findall(r"`(\w+)`", sentence)) == FREE_ON_RESUME


@pytest.fixture
def snippets(tmp_path: Path) -> Path:
    """The files that the README shows, each named in its first line."""
    found = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", README, re.DOTALL)
    assert [name for name, _ in found] == ["reinforce.py", "redness.py"]
    for name, text in found:
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_readme_s_algorithm_learns(snippets: Path):
    policy, rule = ChainPolicy(2, 3), Chain(a=(0.9, 0.8), sigma=(0.5, 0.4))
    method = algorithm(f"{snippets / 'reinforce.py'}:Reinforce")()
    sizes = {"prompts_per_round": 1, "images_per_prompt": 128}
    train(policy, rule, method, lambda x, prompts: x.sum(1), rounds=20, lr=0.05, **sizes)
    assert (policy.delta > 0.4).all(), "every step has to move the samples to where the reward is"


def test_the_readme_s_reward_scores(snippets: Path):
    made = reward(f"{snippets / 'redness.py'}:redness")
    pictures = torch.zeros(2, 3, 4, 4)
    pictures[0, 0] = 1
    assert score(made, pictures, ["a", "b"]).value.tolist() == [1.0, 0.0]
