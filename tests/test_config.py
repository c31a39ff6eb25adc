"""Configs: short forms, overrides, and every mistake named at once with where it was written."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from diffalign.errors import DiffalignError
from diffalign.registry import configs, reward_maker, search_configs
from diffalign.settings import config
from diffalign.settings.named import make

GOOD = """\
model: emoji
steps: 10
algorithm: d3po
reward: jpeg_compressibility
eval_rewards: {detail: {name: jpeg_incompressibility}}
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
    assert loaded.rewards["jpeg_compressibility"].weight == 1.0
    assert (loaded.combine.name, loaded.normalize, loaded.calibrate) == ("sum", "none", False)
    assert loaded.lr == 2e-3
    assert loaded.lora is not None
    assert loaded.lora.rank == 16


def test_overrides_reach_below_short_forms_and_replace_whole_values(write):
    path = write(GOOD)
    loaded = config.load(path, ["algorithm.beta=0.5", "lora.rank=4", "rewards.jpeg_compressibility.weight=2"])
    assert loaded.algorithm.arguments == {"beta": 0.5}
    assert loaded.lora is not None
    assert loaded.lora.rank == 4
    assert loaded.rewards["jpeg_compressibility"].weight == 2
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
        ("rewards={look: {name: emoji_clip, score: 3}}", "rewards.look.score"),
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
    given = f"rewards={{mine: {{name: '{own}:Blurred', size: [3, 4], where: masks, rate: 2}}}}"
    spec = config.load(write(GOOD), [given]).rewards["mine"]
    assert make(spec, reward_maker).given == ((3, 4), Path("masks"), 2.0)
    assert "rewards.mine.size" in problems(write(GOOD), given.replace("[3, 4]", "[3, x]"))
    assert "rewards.mine.rate" in problems(write(GOOD), given.replace("rate: 2", "rate: '2'"))


def test_annotations_for_type_checkers_are_no_obstacle(write, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    loaded = config.load(write(GOOD), [f"rewards={{mine: {{name: '{tmp_path / 'own.py'}:odd', thing: 3}}}}"])
    assert loaded.rewards["mine"].arguments == {"thing": 3}


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


# -- rewards ----------------------------------------------------------------------------------

TWO = GOOD.replace(
    "reward: jpeg_compressibility\n",
    "rewards:\n  - jpeg_compressibility\n  - {name: emoji_clip, score: style, label: style, weight: 2}\n",
)


def of(loaded: config.RunConfig) -> dict[str, tuple]:
    return {label: (s.name, s.weight, s.arguments) for label, s in loaded.rewards.items()}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("jpeg_compressibility", {"jpeg_compressibility": ("jpeg_compressibility", 1, {})}),
        ("{name: emoji_clip, score: style}", {"emoji_clip": ("emoji_clip", 1, {"score": "style"})}),
        ("[jpeg_compressibility, {name: emoji_clip, weight: 3}]",
         {"jpeg_compressibility": ("jpeg_compressibility", 1, {}), "emoji_clip": ("emoji_clip", 3, {})}),
        ("{emoji_clip: 3, plain: jpeg_compressibility}",
         {"emoji_clip": ("emoji_clip", 3, {}), "plain": ("jpeg_compressibility", 1, {})}),
        ("{style: {name: emoji_clip, score: style}, emoji_clip: }",
         {"style": ("emoji_clip", 1, {"score": "style"}), "emoji_clip": ("emoji_clip", 1, {})}),
    ],
)  # fmt: skip
def test_every_form_of_rewards_means_labels_with_specs(write, written, expected):
    text = GOOD.replace("reward: jpeg_compressibility", f"rewards: {written}")
    assert of(config.load(write(text))) == expected
    assert of(config.load(write(GOOD), [f"rewards={written}"])) == expected


def test_overrides_name_rewards_by_label_and_one_reward_by_reward(write):
    loaded = config.load(write(TWO), ["rewards.style.weight=0.5", "rewards.style.score=match"])
    assert of(loaded)["style"] == ("emoji_clip", 0.5, {"score": "match"})
    one = config.load(write(TWO), ["reward=emoji_clip", "reward.score=style", "reward.weight=4"])
    assert of(one) == {"emoji_clip": ("emoji_clip", 4, {"score": "style"})}


def test_resolved_rewards_load_as_themselves(write):
    loaded = config.load(write(TWO), ["combine={name: log_sigmoid, pictures: 4}", "calibrate=true"])
    assert config.validate(loaded.resolved()) == loaded


def test_problems_of_rewards_say_where_they_were_written(write):
    text = TWO.replace("score: style", "scoer: style")
    assert "rewards.style.scoer (" in problems(write(text))
    assert "my.yaml:6): is not a known key. Did you mean 'score'?" in problems(write(text))
    short = GOOD.replace("reward: jpeg_compressibility", "reward: jpeg_compressibilty")
    assert "rewards.jpeg_compressibilty.name (" in problems(write(short))
    assert "my.yaml:4): unknown reward" in problems(write(short))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rewards={}"], "rewards"),
        (["rewards=[emoji_clip, emoji_clip]"], "two rewards labelled 'emoji_clip'; give one of them another `label`"),
        (["rewards=[3]"], "holds 3; each item of the list is a name"),
        (["rewards=3"], "is 3; write a name"),
        (["rewards={total: emoji_clip}"], "not 'total', the name of the combined reward"),
        (["rewards={a.b: emoji_clip}"], "the label 'a.b'; a label is letters"),
        (["rewards={a: {weight: 2}}"], "unknown reward 'a'"),
        (["reward={a: {name: emoji_clip}}"], "it is one reward, a name or {name: ..., arguments}"),
        (["rewards=[emoji_clip, jpeg_compressibility]", "reward.score=style"], "write rewards.LABEL.score"),
        (["eval_rewards=jpeg_compressibility"], "is trained on as 'jpeg_compressibility'"),
        (["reward=emoji_clip", "eval_rewards={m: {name: emoji_clip, score: match}}"], "is trained on as 'emoji_clip'"),
        (["eval_rewards={jpeg_compressibility: {name: emoji_clip}}"], "is also a label of `rewards`"),
        (["reward={url: 'http://127.0.0.1:1', python: /usr/bin/python3}"], "a reward runs in one place"),
        (["rewards=[{url: 'http://127.0.0.1:1', timeoutt: 3}]"], "Did you mean 'timeout'?"),
        (["reward={python: /usr/bin/python3}"], "it is one reward"),
        (["combine=mni"], "Did you mean 'min'?"),
        (["combine={name: mean_minus_std, penalti: 1}"], "Did you mean 'penalty'?"),
        (["combine=lagrangian"], "combine.constraints (the command line, combine=lagrangian): is missing"),
        (["combine={name: log_sigmoid, pictures: 1}"], "be 2 or more"),
        (["normalize=both"], "'none', 'before' or 'after'"),
        (["normalize=before", "images_per_prompt=1", "algorithm=ddpo"], "`normalize` compares pictures"),
        (["calibration_pictures=1"], "greater than or equal to 2"),
    ],
)  # fmt: skip
def test_bad_rewards_say_what_came_and_what_is_allowed(write, overrides, expected):
    assert expected in problems(write(GOOD), *overrides)


@pytest.mark.parametrize("name", ["min", "median", "mean", "mean_minus_variance", "mean_minus_std"])
def test_ensembles_of_unlike_rewards_need_one_scale(write, name):
    plain = ["rewards.style.weight=1", f"combine={name}"]
    message = problems(write(TWO), *plain)
    assert "compares the scores of jpeg_compressibility, style, which are on different scales" in message
    assert "`calibrate: true`" in message
    for cure in ("calibrate=true", "normalize=before"):
        assert config.load(write(TWO), [*plain, cure]).combine.name == name
    same = "rewards={a: {name: emoji_clip}, b: {name: emoji_clip, score: style}}"
    assert config.load(write(TWO), [same, f"combine={name}"]).combine.name == name


@pytest.mark.parametrize(
    ("combine", "more", "expected"),
    [
        ("min", ["calibrate=true"], "does not read weights; take the weight of style"),
        ("mean_minus_std", ["reward=emoji_clip"], "needs 2 rewards or more, and `rewards` has 1"),
        ("{name: lagrangian, constraints: [nothing >= 1]}", [], "names 'nothing', which is not in `rewards`"),
        ("{name: lagrangian, constraints: [style >= 1]}", [], "take its weight out"),
        ("{name: lagrangian, constraints: [style > 1]}", [], "'style > 1' is not a constraint"),
        ("{name: lagrangian, constraints: [emoji_clip >= 1]}", ["reward=emoji_clip"], "leaves no reward to maximise"),
        ("{name: lagrangian, constraints: []}", [], "constraints is empty"),
        ("{name: lagrangian, constraints: [style >= 0, style>=0.0]}", ["rewards.style.weight=1"], "constraint twice"),
        ("{name: lagrangian, constraints: [style >= 0]}",
         ["rewards.style.weight=1", "normalize=before"], "`normalize: before` takes away"),
        ("log_sigmoid", ["normalize=before"], "`normalize: before` takes away"),
    ],
)  # fmt: skip
def test_what_a_combiner_cannot_use_is_refused(write, combine, more, expected):
    assert expected in problems(write(TWO), f"combine={combine}", *more)


def test_reward_and_rewards_together_are_refused(write):
    assert "are both written. Keep one." in problems(write(GOOD + "rewards: [emoji_clip]\n"))


def test_where_a_reward_runs_may_change_when_a_run_goes_on(write):
    one, other = (
        config.load(write(GOOD), [f"rewards=[{{url: 'http://127.0.0.1:{port}', label: far}}]"])
        for port in (1, 2)
    )
    assert one.identity() == other.identity()
    assert one.rewards["far"].url != other.rewards["far"].url


def test_a_token_stays_out_of_the_run_folder(write):
    message = problems(write(GOOD), "reward={url: 'http://127.0.0.1:1', token: secret}")
    assert "rewards.remote.token (the command line" in message
    assert "Allowed: timeout, tries" in message


def test_the_example_of_the_documentation_is_valid(write):
    text = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
    example = text.split("## Several rewards")[1].split("```yaml\n")[1].split("```")[0]
    kept = [line for line in GOOD.splitlines() if not line.startswith(("reward:", "eval_rewards:"))]
    loaded = config.load(write("\n".join(kept) + "\n" + example))
    assert of(loaded)["style"] == ("emoji_clip", 2.0, {"score": "style"})
    constraint = config.load(write("\n".join(kept) + "\n" + example), [
        "rewards.style.weight=1", "combine={name: lagrangian, constraints: ['style >= 0.25']}", "calibrate=true",
    ])  # fmt: skip
    assert constraint.combine.arguments == {"constraints": ["style >= 0.25"]}


LIFTING = """
from __future__ import annotations
from diffalign.reward import Reward

class Lift:
    def __init__(self, reward: Reward, how: str = "mean"):
        self.reward = reward
    def __call__(self, images, prompts, **metadata):
        return self.reward(images, prompts) + 1

class Whole:
    def score_set(self, images, prompts, **metadata):
        return images.mean()

class Rank:
    def score_group(self, images, prompt, **metadata):
        return images.mean((1, 2, 3)).argsort().argsort().float()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(LIFTING)
    monkeypatch.chdir(tmp_path)
    return "own.py"


def test_a_reward_may_take_a_reward(own, write):
    lift = "reward={name: 'own.py:Lift', reward: {name: 'own.py:Lift', reward: {name: emoji_clip, score: style}}}"
    assert list(config.load(write(GOOD), [lift]).rewards) == ["Lift"]


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ("emoji_clp", "rewards.Lift.reward.name (the command line"),
        ("emoji_clp", "Did you mean 'emoji_clip'?"),
        ("{name: emoji_clip, scoer: style}", "rewards.Lift.reward.scoer"),
        ("{name: emoji_clip, score: stile}", "'match' or 'style'"),
        ("{name: 'own.py:Lift', reward: emoji_clp, hwo: max}", "rewards.Lift.reward.reward.name"),
        ("{name: 'own.py:Lift', reward: emoji_clp, hwo: max}", "Did you mean 'how'?"),
        ("3", "is a reward: write its name, or {name: ..., arguments}; got 3"),
        ("'own.py:Whole'", "gives one number to a whole set"),
        ("'own.py:Rank'", "compares all pictures of a prompt"),
    ],
)
def test_all_problems_of_nested_rewards_are_named(own, write, inner, expected):
    assert expected in problems(write(GOOD), f"reward={{name: 'own.py:Lift', reward: {inner}}}")


def test_set_rewards_only_judge_and_group_rewards_may_train(own, write):
    message = problems(write(GOOD), "reward='own.py:Whole'")
    assert "gives one number to a whole set of pictures, so no picture learns from it" in message
    assert "put it under `eval_rewards`" in message
    assert config.load(write(GOOD), ["eval_rewards='own.py:Whole'", "reward='own.py:Rank'"])


@pytest.mark.parametrize("name", sorted({*configs()} - {*search_configs()}))
def test_packaged_configs_are_valid(name):
    loaded = config.load(name)
    assert loaded.prompts != loaded.heldout_prompts
