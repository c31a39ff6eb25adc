"""Configs: short forms, overrides, and every mistake named at once with where it was written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from diffalign import config
from diffalign.errors import DiffalignError
from diffalign.registry import configs, reward_maker

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
        ("lr=.nan", "finite number"),
        ("seed=-1", "greater than or equal to 0"),
        (
            "algorithm.beta='0.5'",
            "algorithm.beta (the command line, algorithm.beta='0.5'): Input should be a valid",
        ),
        ("algorithm.beta=true", "got True (bool)"),
        ("algorithm.beta=-0.1", "greater than 0; got -0.1"),
        ("algorithm.beta=.inf", "finite number"),
        ("algorithm.clip=-1", "greater than 0"),
        ("algorithm.clip=1", "less than 1"),
        ("algorithm.keep=0", "greater than or equal to 1"),
        ("algorithm.keep=2.0", "algorithm.keep"),
        ("algorithm.timestep_fraction=7", "less than or equal to 1"),
        ("algorithm={name: prdp, beta_nats: 0}", "greater than 0"),
        ("algorithm={name: prdp, epochs: 0}", "algorithm.epochs"),
        ("algorithm={name: ddpo, epochs: 2.0}", "valid integer; got 2.0 (float)"),
        ("algorithm={name: ddpo, clip_range_mean: 0}", "greater than 0"),
        ("algorithm={name: ddpo, kl_weight: -1}", "greater than or equal to 0"),
        ("algorithm={name: ddpo, buffer_size: 4}", "min_count = 16 rewards of a prompt never come together"),
        ("rule={name: ddim, eta: '1'}", "rule.eta"),
        ("rule={name: ddim, quiet_last: -1}", "rule.quiet_last"),
        ("rule={name: flow_sde, noise_level: -1}", "rule.noise_level"),
        ("reward={look: {name: emoji_clip, score: 3}}", "reward.look.score"),
        ("warmup_updates=3", "is 3, but the run has 3 update(s) in all; make it less than that"),
        ("micro_batch=1", "is 1, but d3po passes 2 pictures of a prompt through the denoiser at once"),
        ("diversity=jpeg_compressibility", "has no method embed(images); take emoji_clip"),
        ("diversity=emoji_clap", "Did you mean 'emoji_clip'"),
        ("call={guidance_scale: 3}", "a key of its own; write guidance_scale: 3 beside `call`"),
    ],
)
def test_bad_values_say_what_came_and_what_is_allowed(write, override, expected):
    assert expected in problems(write(GOOD), override)


def test_ddpo_needs_others_to_leave_one_out(write):
    path, alone = write(GOOD), ["algorithm={name: ddpo, advantage: leave_one_out}", "images_per_prompt=1"]
    assert "ddpo compares pictures of one prompt; make it 2 or more" in problems(path, *alone)
    assert config.load(path, ["algorithm=ddpo", "images_per_prompt=1"]).images_per_prompt == 1


def test_kept_pictures_alone_need_to_fit_into_a_micro_batch(write):
    eight = ["images_per_prompt=8", "micro_batch=4"]
    assert "passes 8 pictures" in problems(write(GOOD), *eight)
    assert config.load(write(GOOD), [*eight, "algorithm.keep=2"]).micro_batch == 4
    assert config.load(write(GOOD), [*eight, "algorithm=prdp"]).micro_batch == 4


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_missing_trackers_are_named_before_anything_runs(write, name):
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed here")
    assert f"pip install {name}, or leave them out: trackers=[]" in problems(
        write(GOOD), f"trackers=[{name}]"
    )


OWN = """
from __future__ import annotations
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nowhere import Something

class Blurred:
    def __init__(self, size: tuple[int, int], where: Path = Path("."), rate: float = 1.0):
        self.given = size, where, rate
    def __call__(self, images, prompts): ...

def odd(images, prompts, thing: Something = None, rate: float = 1.0): ...
"""


def test_arguments_come_in_the_annotated_types(write, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    own = f"{tmp_path / 'own.py'}"
    given = f"reward={{mine: {{name: '{own}:Blurred', size: [3, 4], where: masks, rate: 2}}}}"
    spec = config.load(write(GOOD), [given]).reward["mine"]
    assert config.make(spec, reward_maker).given == ((3, 4), Path("masks"), 2.0)
    assert "reward.mine.size" in problems(write(GOOD), given.replace("[3, 4]", "[3, x]"))
    assert "reward.mine.rate" in problems(write(GOOD), given.replace("rate: 2", "rate: '2'"))


def test_annotations_for_type_checkers_are_no_obstacle(write, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    loaded = config.load(write(GOOD), [f"reward={{mine: {{name: '{tmp_path / 'own.py'}:odd', thing: 3}}}}"])
    assert loaded.reward["mine"].arguments == {"thing": 3}


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
