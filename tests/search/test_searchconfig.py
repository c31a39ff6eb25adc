"""Configs of searches, and command lines that make one: every mistake at once, with where it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffalign.errors import DiffalignError
from diffalign.registry import configs, search, search_configs, searches
from diffalign.settings import config, rewardarg, searchconfig
from diffalign.settings.named import make
from diffalign.settings.searchwords import Asked

GOOD = """\
model: emoji
steps: 10
reward: jpeg_compressibility
search: {name: best_of_n, n: 4}
"""
MINE = """
from dataclasses import dataclass
from diffalign.bounds import Positive
from diffalign.reward import Reward
from diffalign.search import Search


@dataclass
class Mine(Search):
    tries: Positive = 2
    guide: Reward | None = None
    def search(self, task): ...


@dataclass
class Around(Search):
    method: Search
    guide: Reward
    def search(self, task): ...


class NoSearch: ...
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(GOOD)
    Path("with.yaml").write_text(GOOD + "prompts: p.txt\n")
    Path("two.yaml").write_text(GOOD.replace("reward:", "rewards:") + "prompts: p.txt\n")
    Path("p.txt").write_text("red apple\ndog face\n")
    Path("mine.py").write_text(MINE)
    return tmp_path


def settings(*words: str, **options: Any) -> searchconfig.SearchConfig:
    if "reward" in options:
        options["rewards"] = rewardarg.forms(options.pop("reward"))
    return Asked.of(words, options).settings()


def problems(*words: str, **options: Any) -> str:
    with pytest.raises(DiffalignError) as caught:
        settings(*words, **options)
    return str(caught.value)


@pytest.mark.parametrize("name", search_configs())
def test_packaged_configs_are_valid(name):
    prompts = {} if "\nprompts:" in configs()[name].read_text(encoding="utf-8") else {"prompts": ["a"]}
    loaded = settings(name, **prompts)
    assert loaded.search.name in searches()
    assert searchconfig.validate(loaded.resolved()) == loaded


@pytest.mark.parametrize("name", searches())
def test_every_file_of_a_method_defines_one(name):
    assert search(name).__module__ == f"diffalign.search.{name}"


def test_a_command_line_is_a_config():
    found = settings(
        "best_of_n", "search.n=3", model="emoji", reward=["emoji_clip:score=style", "jpeg_compressibility"],
        prompts=["red apple, 3d", "dog"], adapter="runs/a",
    )  # fmt: skip
    assert (found.model, found.steps, found.adapter) == ("emoji", 20, "runs/a")
    assert found.prompts == ["red apple, 3d", "dog"]
    assert {label: spec.arguments for label, spec in found.rewards.items()} == {
        "emoji_clip": {"score": "style"}, "jpeg_compressibility": {},
    }  # fmt: skip
    assert make(found.search, search).n == 3
    assert found.eval_rewards == {}


def test_a_method_says_what_suits_it_without_a_config():
    assert settings("reno", model="emoji", reward=["emoji_clip"], prompts=["a"]).steps == 1
    assert settings("reno", "steps=2", model="emoji", reward=["emoji_clip"], prompts=["a"]).steps == 2
    assert settings("reno", "good.yaml", prompts=["a"]).steps == 10


def test_a_config_is_kept_but_for_what_the_command_line_says():
    assert settings("with.yaml").search.arguments == {"n": 4}
    assert settings("best_of_n", "with.yaml").search.arguments == {"n": 4}
    assert settings("fk", "with.yaml").search.arguments == {}
    assert settings("with.yaml", "search=fk", "search.particles=2").search.arguments == {"particles": 2}
    assert list(settings("with.yaml", reward=["emoji_clip"]).rewards) == ["emoji_clip"]
    assert settings("with.yaml", "prompts=q.txt").prompts == "q.txt"


@pytest.mark.parametrize(
    ("words", "options", "expected"),
    [
        ([], {}, "say how to search"),
        (["best_of_m"], {}, "unknown search method 'best_of_m'. Did you mean 'best_of_n'?"),
        (["fk", "emoji-best"], {}, "unknown config 'emoji-best'"),
        (["fk", "good.yaml", "more"], {}, "got 3: fk, good.yaml, more"),
        (["with.yaml"], {"prompts": ["a"]}, "so is `prompts` (with.yaml:5); leave one of them out"),
        (["good.yaml"], {}, "prompts: is missing"),
        (["good.yaml", "prompts=[]"], {}, "prompts (the command line, prompts=[]): is []"),
        (["with.yaml", "search.n=0"], {}, "search.n (the command line, search.n=0)"),
        (["with.yaml", "search.m=1"], {}, "search.m (the command line, search.m=1): is not a known key. Allowed: n"),
        (["with.yaml", "search=best_of_m"], {}, "Did you mean 'best_of_n'"),
        (["with.yaml", "search=mine.py:NoSearch"], {}, "inherit diffalign.search.Search"),
        (["with.yaml", "search=mine.py:Mine", "search.tries=0"], {}, "search.tries"),
        (["with.yaml", "promts_at_once=2"], {}, "Did you mean 'prompts_at_once'"),
        (["with.yaml", "normalize=before"], {}, "no group of pictures to normalise within; `calibrate: true`"),
        (["two.yaml", "combine=min", "rewards=[emoji_clip, jpeg_compressibility]"], {}, "add `calibrate: true`"),
        (["with.yaml", "decode_with.model=emoji"], {}, "decode_with.steps: is missing"),
        (["with.yaml", "decode_with={model: emoji, steps: 2, seed: 1}"], {}, "decode_with.seed"),
        (["with.yaml", "eval_rewards=jpeg_compressibility"], {}, "judge by another reward"),
        (["emoji-d3po"], {}, "is the config of a training run"),
        (["with.yaml"], {"reward": ["emoji_clap"]}, "Did you mean 'emoji_clip'"),
    ],
)  # fmt: skip
def test_bad_input_says_what_came_and_what_is_allowed(words, options, expected):
    assert expected in problems(*words, **options)


def test_all_mistakes_are_named_at_once():
    text = problems("with.yaml", "steps=0", "search.n=-1", "modle=x", "guidance_scale=-1")
    assert text.startswith("4 problems in with.yaml:")


def test_training_refuses_a_search():
    with pytest.raises(DiffalignError, match=r"`diffalign search good\.yaml` runs it"):
        config.load("good.yaml")


def test_rewards_and_methods_inside_a_method_are_made():
    inner = "{name: mine.py:Around, method: {name: best_of_n, n: 2}, guide: {name: emoji_clip, score: style}}"
    loaded = settings("with.yaml", f"search={inner}")
    made = make(loaded.search, search)
    assert made.method.n == 2
    assert made.guide.score == "style"


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ("{name: mine.py:Around, method: best_of_m, guide: emoji_clip}", "Did you mean 'best_of_n'"),
        ("{name: mine.py:Around, method: {name: best_of_n, n: 0}, guide: emoji_clip}", "search.method.n"),
        ("{name: mine.py:Around, method: 3, guide: emoji_clip}", "is a search method: write its name"),
        ("{name: mine.py:Around, method: fk, guide: emoji_clap}", "Did you mean 'emoji_clip'"),
        ("{name: rl_guidance, w: high}", "search.w"),
        ("{name: rl_guidance, method: {name: fk, particles: 0}}", "search.method.particles"),
    ],
)
def test_what_is_wrong_inside_a_method_is_named(inner, expected):
    assert expected in problems("with.yaml", f"search={inner}")
