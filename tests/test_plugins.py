"""Rewards of other packages, really built and installed, beside a core installed regularly or editable."""

from __future__ import annotations

import pytest
from packages import Environment, copy_source, package

GOOD = "def glow(images, prompts):\n    return images.flatten(1).mean(1)\n"
SAYS = "import diffalign, torch; from diffalign import registry; print(diffalign.__file__); "
SCORE = "print(registry.reward('{}')(torch.full((2, 3, 4, 4), 0.5), ['', '']).tolist())"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return copy_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module", params=["regularly", "editable"])
def installed(request, source, tmp_path_factory):
    """An environment with the core and plug-ins: a good one, two that are broken, and two of one name."""
    here = tmp_path_factory.mktemp(request.param)
    environment = Environment(here / "venv")
    environment.install(*(["--editable"] if request.param == "editable" else []), str(source))
    made = [
        package(here / "a", "acme-glow", {"glow": "glow", "same": "glow"}, GOOD, "1.2"),
        package(here / "b", "other-glow", {"same": "glow", "frames": "glow"}, GOOD, "3.4"),
        package(here / "c", "half-done", {"raises": "reward"}, "raise ValueError('no luck')\n", "0.1"),
        package(here / "d", "gone", {"absent": "not_there", "number": "three"}, "three = 3\n", "0.2"),
    ]
    environment.install(*map(str, made))
    where = str(source) if request.param == "editable" else str(here / "venv")
    return environment, where


BROKEN = {
    "raises": "the reward 'raises' of the package half-done 0.1 cannot be loaded from half_done:reward: "
    "ValueError: no luck",
    "absent": "the reward 'absent' of the package gone 0.2 cannot be loaded",
    "number": "the package gone 0.2 cannot be loaded from gone:three: TypeError: a reward is a class",
    "same": "offered by acme-glow 1.2 and by other-glow 3.4, and only one can be meant",
    "frames": "offered by diffalign itself and by other-glow 3.4",
}
USE_ALL = """
from diffalign import registry
from diffalign.errors import DiffalignError
for name in %s:
    try:
        registry.reward(name)
    except DiffalignError as error:
        print(error)
"""


def test_a_plugin_is_found_and_scores(installed, tmp_path):
    environment, where = installed
    core, scores = environment.python("-c", SAYS + SCORE.format("glow"), cwd=tmp_path).split("\n", 1)
    assert core.startswith(where)
    assert scores == "[0.5, 0.5]\n"


def test_the_list_says_where_each_is_from_and_which_are_broken(installed):
    done = installed[0].run("diffalign", "reward", "list", COLUMNS="400")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert "acme-glow 1.2" in rows["glow"]
    assert "broken" not in rows["glow"]
    assert "built in" in rows["emoji_clip"]
    assert "broken: the reward 'raises' of the package half-done 0.1" in rows["raises"]
    assert "acme-glow 1.2 and by other-glow 3.4" in rows["same"]
    assert "diffalign itself and by other-glow 3.4" in rows["frames"]


def test_what_is_broken_or_twofold_fails_when_used_and_names_its_package(installed):
    said = installed[0].python("-c", USE_ALL % list(BROKEN)).splitlines()
    assert len(said) == len(BROKEN)
    for line, expected in zip(said, BROKEN.values(), strict=True):
        assert expected in line


def test_the_command_line_ends_with_2_and_the_package_at_fault(installed):
    done = installed[0].run("diffalign", "reward", "check", "raises")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "half-done 0.1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_new_package_installs_and_passes_its_own_test(installed, tmp_path):
    environment, _ = installed
    assert environment.run("diffalign", "reward", "new", "my_glow", cwd=tmp_path).returncode == 0
    folder = tmp_path / "diffalign-reward-my-glow"
    environment.install(str(folder))
    done = environment.run(str(environment.bin / "python"), "-m", "pytest", "-q", cwd=folder)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    done = environment.run("diffalign", "reward", "check", "my_glow", "target=0.7", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
