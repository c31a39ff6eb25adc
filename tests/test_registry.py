"""Names resolve to built-in files, entry points, modules and files of one's own."""

from __future__ import annotations

import pytest
import torch

from diffalign import registry
from diffalign.arguments import parameters
from diffalign.errors import DiffalignError

MINE = """
from __future__ import annotations
from dataclasses import dataclass
from diffalign.rewarding.combine import Combiner
from diffalign.reward import Reward

@dataclass
class Mine:
    rate: float = 1.0
    def collect(self, run): ...
    def minibatches(self, run, batch): ...
    def losses(self, run, batch): ...

class Half:
    def __init__(self, scale: float = 0.5):
        self.scale = scale
    def __call__(self, images, prompts, **metadata):
        return images.flatten(1).mean(1) * self.scale

def brightness(images, prompts, power: float = 1.0, **metadata):
    return images.flatten(1).mean(1) ** power

class Twice:
    def __init__(self, reward: Reward):
        self.reward = reward
    def __call__(self, images, prompts, **metadata):
        return 2 * self.reward(images, prompts)

class First(Combiner):
    def __call__(self, members):
        return members.stacked[0]

number = 3

class Hungry:
    def __init__(self):
        raise OSError("no food in the house")
    def __call__(self, images, prompts): ...
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine_here.py").write_text(MINE)
    (tmp_path / "half_written.py").write_text("import torch\n\ndef X(images, prompts:\n")
    (tmp_path / "broken_here.py").write_text("class X:\n    shade = colour\n")
    monkeypatch.chdir(tmp_path)
    return "mine_here.py"


@pytest.mark.parametrize("name", registry.algorithms())
def test_every_algorithm_file_defines_one(name):
    found = registry.algorithm(name)
    assert found.__module__ == f"diffalign.algorithms.{name}"
    assert hasattr(found(), "losses")


@pytest.mark.parametrize("where", ["mine_here.py", "mine_here"])
def test_algorithm_of_ones_own(mine, where):
    assert registry.algorithm(f"{where}:Mine")(rate=2.0).rate == 2.0


def test_reward_class_and_function_take_arguments(mine):
    images = torch.full((2, 3, 4, 4), 0.25)
    assert registry.reward(f"{mine}:Half", scale=2.0)(images, ["", ""]).tolist() == [0.5, 0.5]
    assert registry.reward(f"{mine}:brightness", power=0.5)(images, ["", ""]).tolist() == [0.5, 0.5]
    assert registry.reward(f"{mine}:brightness")(images, ["", ""]).tolist() == [0.25, 0.25]
    assert list(parameters(registry.reward_maker(f"{mine}:brightness"))) == ["power"]


def test_a_reward_inside_a_reward_is_made_first(mine):
    images = torch.full((2, 3, 4, 4), 0.25)
    half = {"name": f"{mine}:Half", "scale": 2.0}
    assert registry.reward(f"{mine}:Twice", reward=half)(images, ["", ""]).tolist() == [1.0, 1.0]
    assert registry.reward(f"{mine}:Twice", reward=f"{mine}:Half")(images, ["", ""]).tolist() == [0.25, 0.25]
    deep = {"name": f"{mine}:Twice", "reward": half}
    assert registry.reward(f"{mine}:Twice", reward=deep)(images, ["", ""]).tolist() == [2.0, 2.0]


def test_combiners_resolve_by_name_or_from_ones_own_file(mine):
    assert {"sum", "min", "lagrangian"} <= set(registry.combiners())
    assert registry.combiner("mean_minus_std")(penalty=2.0).penalty == 2.0
    assert registry.combiner(f"{mine}:First").__name__ == "First"


@pytest.mark.parametrize(
    ("find", "name", "expected"),
    [
        (registry.algorithm, "ddpoo", "Did you mean 'ddpo'?"),
        (registry.reward, "nope", "unknown reward 'nope'"),
        (registry.rule, "ddmi", "Did you mean 'ddim'?"),
        (registry.combiner, "meen", "Did you mean 'mean'?"),
        (registry.combiner, "mine_here.py:Half", "is not a combiner"),
        (registry.algorithm, "mine_here.py:Mnie", "Did you mean 'Mine'?"),
        (registry.algorithm, "mine_here.py:Half", "is not an algorithm"),
        (registry.reward, "mine_here.py:number", "not 3"),
        (registry.reward, "mine_here.py:Mine", "its class needs a method __call__(images, prompts)"),
        (registry.reward, "mine_here.py:Hungry", "could not be made: OSError: no food in the house ("),
        (
            registry.reward,
            "half_written.py:X",
            "could not be imported: SyntaxError: '(' was never closed (half_wr",
        ),
        (registry.algorithm, "half_written:X", "could not be imported: SyntaxError"),
        (registry.algorithm, "broken_here.py:X", "NameError: name 'colour' is not defined"),
        (registry.reward, "no_such_module:X", "could not be imported"),
        (registry.reward, "missing.py:X", "missing.py does not exist"),
    ],
)
def test_unknown_names_say_what_is_allowed(mine, find, name, expected):
    with pytest.raises(DiffalignError) as caught:
        find(name)
    assert expected in str(caught.value)


def test_a_plugin_is_found_by_its_entry_point(tmp_path, monkeypatch):
    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[diffalign.rewards]\nshiny = plugin_shiny:brightness\n")
    (tmp_path / "plugin_shiny.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    assert "shiny" in registry.rewards()
    assert registry.reward("shiny")(torch.ones(1, 3, 2, 2), [""]).tolist() == [1.0]
