"""`diffalign reward new`: a package with one reward, to be changed into one's own."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path

import jinja2

from diffalign import registry
from diffalign.errors import DiffalignError

TEMPLATES = {
    "pyproject.toml": "pyproject.toml.jinja",
    "README.md": "README.md.jinja",
    "{module}.py": "reward.py.jinja",
    "tests/test_{name}.py": "test_reward.py.jinja",
}
"""File of the package -> template in the folder plugin/."""


def create(name: str, where: Path) -> Path:
    """Writes the package of the reward `name` into a new folder of `where`, and returns that folder."""
    _check(name)
    words = {"name": name, "package": f"diffalign-reward-{name.replace('_', '-')}"}
    words |= {"module": words["package"].replace("-", "_"), "title": name.title().replace("_", "")}
    folder = where / words["package"]
    if folder.exists():
        raise DiffalignError(f"{folder} exists already; it was left as it is. Give another name, or --out.")
    for path, template in TEMPLATES.items():
        target = folder / path.format(**words)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_rendered(template, words), encoding="utf-8")
    return folder


def _check(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise DiffalignError(
            f"{name!r} cannot be the name of a reward; take lower-case letters, digits and single _, such as "
            "my_sharpness, and no word of Python's."
        )
    if name in registry.rewards():
        raise DiffalignError(
            f"there is a reward {name!r} already (`diffalign reward list`); choose another name."
        )


def _rendered(template: str, words: dict[str, str]) -> str:
    text = (files("diffalign.authoring") / "plugin" / template).read_text(encoding="utf-8")
    page = jinja2.Template(text, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return str(page.render(words))
