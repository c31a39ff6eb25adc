"""Reading configs: YAML 1.2, short forms, `key=value` overrides, and errors that say where a key came from."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from diffalign.errors import DiffalignError, unknown

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
    _expand(raw)
    for text in overrides:
        key, value = _split(text)
        _put(raw, key.split("."), value, text)
        origins[key] = f"the command line, {text}"
        _expand(raw)
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
    """(dotted key, file:line) of every key; a key that is written twice is an error."""
    seen: set[str] = set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        where = f"{path}:{key.start_mark.line + 1}"
        if key.value in seen:
            raise DiffalignError(f"{where}: the key {prefix}{key.value} is written twice. Keep one of them.")
        seen.add(key.value)
        yield f"{prefix}{key.value}", where
        yield from _lines(value, path, f"{prefix}{key.value}.")


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


def _put(raw: Raw, path: list[str], value: Any, text: str) -> None:
    *parents, last = path
    for name in parents:
        if raw.get(name) is None:
            raw[name] = {}
        raw = raw[name]
        if not isinstance(raw, dict):
            raise DiffalignError(f"{text!r} does not apply: {name} is {raw!r}, which has no keys below it.")
    raw[last] = value


def _expand(raw: Raw) -> None:
    """Short forms: `algorithm: d3po`, `reward: jpeg_compressibility`, `reward: {style: 2.0}`."""
    for key in ("algorithm", "rule"):
        if isinstance(raw.get(key), str):
            raw[key] = {"name": raw[key]}
    for key in ("reward", "heldout_reward"):
        if isinstance(raw.get(key), str):
            raw[key] = {_label(raw[key]): {"name": raw[key]}}
        if isinstance(raw.get(key), dict):
            raw[key] = {label: _reward(label, spec) for label, spec in raw[key].items()}


def _label(name: str) -> str:
    """`my_file.py:Sharpness` is shown as `Sharpness`."""
    return name.rpartition(":")[2]


def _reward(label: str, spec: Any) -> Any:
    match spec:
        case bool():
            return spec
        case int() | float():
            return {"name": label, "weight": float(spec)}
        case str():
            return {"name": spec}
        case dict() | None:
            return {"name": label, **(spec or {})}
    return spec


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
