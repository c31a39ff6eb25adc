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

from diffalign.registry import algorithm, reward, search, searches
from diffalign.reward import score
from diffalign.settings import searchconfig
from diffalign.settings.config import FREE_ON_RESUME, LoraConfig, RunConfig
from diffalign.settings.configfile import Yaml12
from diffalign.settings.searchconfig import SearchConfig
from diffalign.settings.sharedconfig import ModelConfig, SharedConfig

ROOT = Path(__file__).parents[1]
CONFIG, _, SEARCHES = (ROOT / "docs" / "config.md").read_text(encoding="utf-8").partition("\n## Searches\n")
SEARCH = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def documented(text: str = CONFIG) -> dict[str, str]:
    """Key -> default of every line of the table in a part of docs/config.md."""
    return dict(re.findall(r"^\| `([\w.]+)` \|.*?\| (`[^`]*`|required) \|", text, re.MULTILINE))


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


def searching() -> dict[str, Any]:
    """Key -> default of the keys that mean something else, or are there, in a search alone."""
    fields = SearchConfig.model_fields.items()
    own = {key for key in SearchConfig.model_fields if key in SearchConfig.__annotations__}
    return {
        key: "required" if field.is_required() else field.get_default(call_default_factory=True)
        for key, field in fields
        if key in own
    }


def test_every_key_of_a_search_is_documented_with_its_default():
    said = {key: yaml.load(text.strip("`"), Yaml12) for key, text in documented(SEARCHES).items()}
    assert said == searching()
    shared = SharedConfig.model_fields.keys() - searching().keys()
    named = set(re.findall(r"`(\w+)`", SEARCHES.split("\n|")[0]))
    assert shared - ModelConfig.model_fields.keys() <= named
    assert shared <= documented().keys()


def test_the_keys_that_may_change_when_a_search_goes_on_are_named():
    (sentence,) = re.findall(r"What may change [^:]*: ([^.]*)\.", SEARCHES)
    assert set(re.findall(r"`(\w+)`", sentence)) == searchconfig.FREE_ON_RESUME


def test_the_keys_that_may_change_on_resuming_are_named():
    (sentence,) = re.findall(r"What may change [^:]*: ([^.]*)\.", CONFIG)
    assert set(re.findall(r"`(\w+)`", sentence)) == FREE_ON_RESUME


def shown(text: str) -> list[tuple[str, str]]:
    """(name, code) of the files in a document."""
    return re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def snippets(tmp_path: Path) -> Path:
    """The files that the README shows, each named in its first line."""
    found = shown(README)
    assert [name for name, _ in found] == ["reno.py", "reinforce.py", "redness.py"]
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


@pytest.mark.weights
@pytest.mark.parametrize("document", [README, SEARCH], ids=["README", "search.md"])
def test_the_three_lines_of_a_search_run(document: str):
    code = dict(shown(document))["reno.py"]
    known: dict[str, Any] = {}
    exec(code.replace("iterations=20", "iterations=2"), known)
    assert known["pictures"].shape == (1, 3, 64, 64)
    assert known["found"].total >= known["found"].first_scores["total"]
    assert known["found"].costs[0].reward_calls == 2


def test_the_search_of_the_documents_climbs_in_at_most_thirty_lines(tmp_path: Path):
    code = dict(shown(SEARCH))["climb.py"]
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    (tmp_path / "climb.py").write_text(code)
    method = search(f"{tmp_path / 'climb.py'}:Climb")(rounds=40, reach=0.3)
    policy, rule = ChainPolicy(1, 3), Chain(a=(1.0,), sigma=(0.0,))
    prompts = ["a", "b", "c"]
    found = method(policy, prompts, lambda x, texts: -(x - 2).square().sum(1), rule=rule)
    assert (found.total > found.first_scores["total"] + 1).all()
    assert torch.allclose(found.latents, found.noise)
    assert [cost.denoiser_calls for cost in found.costs] == [40, 40, 40]


def test_every_method_is_in_the_table():
    table = SEARCH.split("## What it leaves")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(searches())
