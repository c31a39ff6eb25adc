"""Reading configs: YAML 1.2, short forms, `key=value` overrides, and errors that say where a key came from."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from diffalign.errors import DiffalignError, unknown
from diffalign.settings.rewardforms import is_one, labelled

Raw = dict[str, Any]
Origins = dict[str, str]
"""Dotted key -> where it was written, such as `my.yaml:12` or `the command line`."""


class Yaml12(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans: 2e-3 is a number and `no` is a word."""


Yaml12.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":bool", ":float", ":int"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
):
    Yaml12.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


class Rejected(ValueError):
    """Several problems of one value: (key below it, message)."""

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{key}: {message}" for key, message in problems))
        self.problems = problems

    @classmethod
    def of(cls, error: ValueError, schema: type[BaseModel], prefix: str = "") -> Rejected:
        """The problems that pydantic found, below `prefix`, in words."""
        if not isinstance(error, ValidationError):
            return cls([(prefix, str(error))])
        return cls(
            [
                (f"{prefix}.{key}".strip("."), text)
                for one in error.errors()
                for key, text in _words(one, schema)
            ]
        )


def read(source: str, packaged: Mapping[str, Path], overrides: Iterable[str] = ()) -> tuple[Raw, Origins]:
    """The plain values of a file or packaged config with overrides, and where each was written."""
    path = packaged.get(source, Path(source))
    if not path.is_file():
        raise unknown("config", source, [*packaged, "FILE.yaml"])
    return override(*_parse(path), overrides)


def override(raw: Raw, origins: Origins, overrides: Iterable[str]) -> tuple[Raw, Origins]:
    """Plain values without short forms, with each `key=value` put in, and where each was written."""
    raw, origins = copy.deepcopy(raw), dict(origins)
    _expand(raw, origins)
    for text in overrides:
        key, value = _split(text)
        path = _path(key, raw)
        _put(raw, path, value, text)
        origins[".".join(path)] = f"the command line, {text}"
        _expand(raw, origins)
    return raw, origins


def explain(error: ValueError, schema: type[BaseModel], origins: Origins, source: str) -> DiffalignError:
    """All problems of a config in one error, each with its key and where it was written."""
    problems = Rejected.of(error, schema).problems
    lines = [f"  {key}{_where(key, origins)}: {text}" for key, text in problems]
    count = f"{len(lines)} problem" + "s" * (len(lines) > 1)
    return DiffalignError("\n".join([f"{count} in {source}:", *lines]))


def _parse(path: Path) -> tuple[Raw, Origins]:
    try:
        text = path.read_text(encoding="utf-8")
        raw = yaml.load(text, Loader=Yaml12) or {}
        origins = dict(_lines(yaml.compose(text, Loader=Yaml12), path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DiffalignError(f"{path} is not readable YAML: {error}") from error
    if not isinstance(raw, dict):
        raise DiffalignError(f"{path} holds a {type(raw).__name__}; a config is `key: value` lines.")
    return raw, origins


def _lines(node: yaml.Node | None, path: Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, file:line) of every key and item; a key that is written twice is an error."""
    seen: set[str] = set()
    for name, at, value in _children(node):
        where = f"{path}:{at.start_mark.line + 1}"
        if name in seen:
            raise DiffalignError(f"{where}: the key {prefix}{name} is written twice. Keep one of them.")
        seen.add(name)
        yield f"{prefix}{name}", where
        yield from _lines(value, path, f"{prefix}{name}.")


def _children(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """(name, where it is written, value) of what a mapping or a list holds; items are called 0, 1, ..."""
    if isinstance(node, yaml.MappingNode):
        yield from ((key.value, key, value) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from ((str(k), value, value) for k, value in enumerate(node.value))


def _split(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (equals and re.fullmatch(r"[\w-]+(\.[\w-]+)*", key)):
        raise DiffalignError(
            f"{text!r} is not an override; write key=value, such as lr=1e-4 or algorithm.beta=0.5"
        )
    try:
        return key, yaml.load(value, Loader=Yaml12)
    except yaml.YAMLError as error:
        raise DiffalignError(f"the value of {text!r} is not readable YAML: {error}") from error


def _path(key: str, raw: Raw) -> list[str]:
    """Where an override goes; `reward` is all of `rewards`, and `reward.KEY` a key of its only one."""
    first, *below = key.split(".")
    if first != "reward":
        return [first, *below]
    if not below:
        raw.pop("rewards", None)
        return ["reward"]
    (only, *others) = raw.get("rewards") or [""]
    if others:
        raise DiffalignError(
            f"{key} could mean any of {len(others) + 1} rewards; write rewards.LABEL.{'.'.join(below)}"
        )
    return ["rewards", only, *below]


def _put(raw: Raw, path: list[str], value: Any, text: str) -> None:
    *parents, last = path
    for name in parents:
        if raw.get(name) is None:
            raw[name] = {}
        raw = raw[name]
        if not isinstance(raw, dict):
            raise DiffalignError(f"{text!r} does not apply: {name} is {raw!r}, which has no keys below it.")
    raw[last] = value


def _expand(raw: Raw, origins: Origins) -> None:
    """Short forms: `algorithm: d3po`, `reward: NAME` for one, and every form of `rewards`."""
    for key in ("algorithm", "search", "rule", "combine"):
        if isinstance(raw.get(key), str):
            raw[key] = {"name": raw[key]}
    if "reward" in raw:
        _one_reward(raw, origins)
    for key in ("rewards", "eval_rewards"):
        if key in raw:
            with suppress(ValueError):  # what is wrong is said when all keys are checked
                raw[key], before = labelled(raw[key]), raw[key]
                _follow(origins, key, raw[key], before)


def _one_reward(raw: Raw, origins: Origins) -> None:
    where = f"reward{_where('reward', origins)}"
    if "rewards" in raw:
        raise DiffalignError(f"{where} and rewards{_where('rewards', origins)} are both written. Keep one.")
    if not is_one(raw["reward"]):
        raise DiffalignError(
            f"{where} is {raw['reward']!r}; it is one reward, a name or {{name: ..., arguments}}. "
            "For several write `rewards`."
        )
    raw["rewards"] = [raw.pop("reward")]
    _move(origins, "reward", "rewards.0")


def _follow(origins: Origins, key: str, labels: Iterable[str], before: Any) -> None:
    """Let the places of a list's items belong to their labels."""
    for number, label in enumerate(labels) if isinstance(before, list) else ():
        _move(origins, f"{key}.{number}", f"{key}.{label}")


def _move(origins: Origins, old: str, new: str) -> None:
    for key in [key for key in origins if f"{key}.".startswith(f"{old}.")]:
        origins[new + key.removeprefix(old)] = origins.pop(key)


def _words(error: Any, schema: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """(key, message) of one of pydantic's errors; one that holds several is spread out."""
    loc = error["loc"][:-1] if error["loc"][-1:] in {(branch,) for branch in _BRANCHES} else error["loc"]
    key = ".".join(map(str, loc))
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, Rejected):
        yield from ((f"{key}.{below}", text) for below, text in cause.problems)
    elif error["type"] == "extra_forbidden":
        yield key, _unknown_key(error["loc"], schema)
    elif error["type"] == "missing":
        yield key, "is missing; give it a value"
    elif cause is not None:
        yield key, str(cause)
    else:
        came = error["input"]
        yield key, f"{error['msg']}; got {came!r} ({type(came).__name__})"


_BRANCHES = {"list[str]", "str"}
"""What pydantic adds at the end of a key's path to say which member of a union it tried."""


def _unknown_key(loc: tuple[Any, ...], schema: type[BaseModel]) -> str:
    """An unknown key, with the nearest that exists beside it."""
    allowed = sorted(_model_at(schema, loc[:-1]).model_fields)
    close = difflib.get_close_matches(str(loc[-1]), allowed, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"is not a known key.{hint} Allowed: {', '.join(allowed) or 'none'}"


def _model_at(schema: type[BaseModel], loc: tuple[Any, ...]) -> type[BaseModel]:
    for part in loc:
        annotation = schema.model_fields[part].annotation if part in schema.model_fields else None
        members = [annotation, *getattr(annotation, "__args__", ())]
        schema = next((m for m in members if isinstance(m, type) and issubclass(m, BaseModel)), schema)
    return schema


def _where(key: str, origins: Origins) -> str:
    """Where a key was written, or the nearest key above it."""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return f" ({origins[key]})" if key else ""
