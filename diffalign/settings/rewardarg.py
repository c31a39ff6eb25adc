"""Rewards as a command line writes them: `NAME`, `NAME:key=value,key=value`, or as in a config, `{name: ...}`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from diffalign import registry
from diffalign.errors import DiffalignError
from diffalign.settings.configfile import Rejected, Yaml12
from diffalign.settings.rewardforms import labelled
from diffalign.settings.rewardspec import RewardSpec, all_fit

SHORT = re.compile(r"(?P<name>.+?):(?P<arguments>\w+=.*)", re.DOTALL)


def specs(texts: Sequence[str]) -> dict[str, RewardSpec]:
    """label -> reward; everything that is wrong with them in one error."""
    try:
        found = {label: RewardSpec.model_validate(raw) for label, raw in labelled(forms(texts)).items()}
        return all_fit(found, registry.reward_maker)
    except ValueError as error:
        problems = Rejected.of(error, RewardSpec).problems
        raise DiffalignError("\n".join(f"--reward {key}: {text}" for key, text in problems)) from error


def forms(texts: Sequence[str]) -> list[Any]:
    """The rewards in forms that configs know, as a list."""
    found: list[Any] = []
    for text in texts:
        one = _form(text)
        found += one if isinstance(one, list) else [one]
    return found


def _form(text: str) -> Any:
    """What one --reward says, in a form that configs know."""
    if text.endswith((".yaml", ".yml")):
        return _listed(Path(text))
    if text.lstrip().startswith("{"):
        return _yaml(text, text)
    if short := SHORT.fullmatch(text):
        return {"name": short["name"], **_arguments(short["arguments"], text)}
    return text


def _arguments(pairs: str, text: str) -> dict[str, Any]:
    _, *rest = re.split(r"(?:^|,)(\w+)=", pairs)
    return {key: _yaml(value, text) for key, value in zip(rest[::2], rest[1::2], strict=True)}


def _listed(path: Path) -> list[Any]:
    """The rewards of a YAML file: what would stand below `rewards:` in a config."""
    if not path.is_file():
        raise DiffalignError(f"the file {path} does not exist (looked in {Path.cwd()}).")
    try:
        read = labelled(_yaml(path.read_text(encoding="utf-8"), str(path)))
    except ValueError as error:
        raise DiffalignError(f"{path} {error}") from error
    return [{**spec, "label": label} for label, spec in read.items()]


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=Yaml12)
    except yaml.YAMLError as error:
        raise DiffalignError(f"{where!r} is not readable YAML: {error}") from error
