"""Configs: short forms, overrides, and every mistake named at once with where it was written."""

from __future__ import annotations

import pytest

from diffalign import config
from diffalign.errors import DiffalignError
from diffalign.registry import configs

GOOD = """\
model: emoji
steps: 10
algorithm: d3po
reward: jpeg_compressibility
heldout_reward: {plain: {name: jpeg_incompressibility}}
prompts: animals
heldout_prompts: animals-heldout
rounds: 3
prompts_per_round: 4
images_per_prompt: 2
lr: 2e-3
"""


@pytest.fixture
def write(tmp_path):
    def file(text: str) -> str:
        (tmp_path / "my.yaml").write_text(text)
        return str(tmp_path / "my.yaml")

    return file


def problems(source: str, *overrides: str) -> str:
    with pytest.raises(DiffalignError) as caught:
        config.load(source, overrides)
    return str(caught.value)


def test_short_forms_and_defaults(write):
    loaded = config.load(write(GOOD))
    assert (loaded.algorithm.name, loaded.algorithm.arguments) == ("d3po", {})
    assert loaded.reward["jpeg_compressibility"].weight == 1.0
    assert loaded.lr == 2e-3
    assert loaded.lora is not None
    assert loaded.lora.rank == 16
    weighted = config.load(write(GOOD), ["reward={jpeg_compressibility: 2, other: jpeg_compressibility}"])
    assert [(s.name, s.weight) for s in weighted.reward.values()] == [
        ("jpeg_compressibility", 2.0),
        ("jpeg_compressibility", 1.0),
    ]


def test_overrides_reach_below_short_forms_and_replace_whole_values(write):
    path = write(GOOD)
    loaded = config.load(path, ["algorithm.beta=0.5", "lora.rank=4", "reward.jpeg_compressibility.weight=2"])
    assert loaded.algorithm.arguments == {"beta": 0.5}
    assert loaded.lora is not None
    assert loaded.lora.rank == 4
    assert loaded.reward["jpeg_compressibility"].weight == 2
    assert config.load(path, ["lora=null"]).lora is None
    assert config.load(path, ["algorithm.beta=0.5", "algorithm=ddpo"]).algorithm.arguments == {}


def test_words_stay_words_as_in_yaml_1_2(write):
    loaded = config.load(write(GOOD + "mixed_precision: no\non_limit: stop\n"))
    assert loaded.mixed_precision == "no"
    assert config.load(write(GOOD), ["mixed_precision=no"]).mixed_precision == "no"


def test_all_mistakes_come_at_once_with_line_and_nearest_match(write):
    text = GOOD.replace("steps: 10", "stepps: 10").replace(
        "algorithm: d3po", "algorithm: {name: d3po, bta: 1}"
    )
    message = problems(
        write(text.replace("rounds: 3", "rounds: three")), "lora.rnk=8", "reward=jpeg_compressibilty"
    )
    assert message.startswith("6 problems in ")
    assert "stepps (" in message
    assert "my.yaml:2): is not a known key. Did you mean 'steps'?" in message
    assert "steps: is missing" in message
    assert "my.yaml:3): is not a known key. Did you mean 'beta'?" in message
    assert "my.yaml:8): Input should be a valid integer; got 'three' (str)" in message
    assert "lora.rnk (the command line, lora.rnk=8): is not a known key. Did you mean 'rank'?" in message
    assert "unknown reward 'jpeg_compressibilty'. Did you mean 'jpeg_compressibility'?" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("steps=10.5", "steps"),
        ("steps=true", "got True (bool)"),
        ("steps=0", "greater than or equal to 1"),
        ("lr=fast", "got 'fast' (str)"),
        ("compile=1", "got 1 (int)"),
        ("dtype=half", "'float32', 'float16' or 'bfloat16'"),
        ("algorithm=d3p0", "Did you mean 'd3po'?"),
        ("algorithm.mode=wild", "'paper_code' or 'calibrated'"),
        ("rule=ddmi", "Did you mean 'ddim'?"),
        ("rule={name: ddim, etta: 1}", "Did you mean 'eta'?"),
        ("images_per_prompt=1", "is 1, but d3po compares pictures of one prompt; make it 2 or more"),
        ("algorithm={beta: 1}", "algorithm.name"),
        ("reward={}", "reward"),
        ("heldout_reward=jpeg_compressibility", "only rewards that are trained on"),
        (
            "updates_per_round=3",
            "prompts_per_round = 4 does not divide into updates_per_round = 3 x 1 process(es)",
        ),
        ("lr", "is not an override; write key=value"),
        ("lr=[1", "not readable YAML"),
        ("steps.deep=1", "steps is 10, which has no keys below it"),
        ("trackers=[tensorbord]", "'tensorboard', 'wandb' or 'trackio'"),
        ("algorithm=nowhere:Mine", "could not be imported"),
        ("algorithm=nowhere.py:Mine", "nowhere.py does not exist"),
    ],
)
def test_bad_values_say_what_came_and_what_is_allowed(write, override, expected):
    assert expected in problems(write(GOOD), override)


def test_batch_arithmetic_counts_processes(write, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "a multiple of 3" in problems(write(GOOD))


def test_a_key_written_twice_is_an_error(write):
    assert "my.yaml:12: the key lr is written twice" in problems(write(GOOD + "lr: 1\n"))


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "a: [", ""])
def test_files_that_are_no_configs(write, text):
    assert problems(write(text))


def test_an_unknown_config_names_the_nearest(tmp_path):
    assert "Did you mean 'emoji-d3po'?" in problems("emoji-d3p")


def test_resolved_config_loads_as_itself(write):
    loaded = config.load(write(GOOD), ["algorithm.beta=0.5", "rule={name: ddim, eta: 0.7}"])
    assert config.validate(loaded.resolved()) == loaded


def test_identity_leaves_out_what_moves_no_weights(write):
    one, other = (config.load(write(GOOD), [o]) for o in ("out=here", "out=there"))
    assert one.identity() == other.identity()
    assert one.identity() != config.load(write(GOOD), ["lr=1e-4"]).identity()


@pytest.mark.parametrize("name", sorted(configs()))
def test_packaged_configs_are_valid(name):
    loaded = config.load(name)
    assert loaded.prompts != loaded.heldout_prompts
