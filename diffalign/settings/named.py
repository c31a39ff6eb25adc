"""Names in a config with the arguments of what they name, checked before anything is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from diffalign import arguments, registry
from diffalign.errors import DiffalignError
from diffalign.reward import kind
from diffalign.settings.configfile import Rejected

Find = Callable[[str], Callable[..., Any]]
Problem = tuple[str, str]
"""(key below the checked one, message)."""


class Strict(BaseModel):
    """No unknown keys, and no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


class Named(Strict):
    """A name and the arguments of what it names."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """Everything but the keys of this class."""
        return dict(self.model_extra or {})


def make(value: Named, find: Find) -> Any:
    """What a name and its arguments stand for, such as an algorithm with its hyper-parameters."""
    maker = find(value.name)
    return registry.make(value.name, maker, convert(maker, value.arguments))


def convert(maker: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a config in the annotated types, also those of rewards among them.

    A list becomes a tuple, a text a path, an int a float; raises pydantic's ValidationError.
    """
    found = _read(schema(maker), given)
    return {name: getattr(found, name) for name in found.model_fields_set}


def filled(maker: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the defaults of what was not given."""
    found = _read(schema(maker), given)
    return {name: getattr(found, name) for name in type(found).model_fields}


def _read(maker: type[BaseModel], given: Mapping[str, Any]) -> BaseModel:
    return maker.model_validate_json(json.dumps(given, default=str))


def fits(value: Named, find: Find) -> Named:
    """The value as it is, if what it names exists and takes its arguments."""
    if found := problems(value.name, value.arguments, find):
        raise Rejected(found)
    return value


def makes(value: Named, find: Find) -> Named:
    """The value as it is, if it fits and what it names says nothing against its own arguments."""
    try:
        make(fits(value, find), find)
    except DiffalignError as error:
        raise ValueError(str(error)) from error
    return value


def problems(name: str, given: Mapping[str, Any], find: Find, label: str = "") -> list[Problem]:
    """What is wrong with a name or its arguments."""
    try:
        maker = find(name)
    except DiffalignError as error:
        return [(f"{label}.name".strip("."), str(error))]
    return misfits(schema(maker), given, label)


def misfits(maker: type[BaseModel], given: Mapping[str, Any], label: str = "") -> list[Problem]:
    """What is wrong with the arguments of something that is known."""
    try:
        _read(maker, given)
    except ValueError as error:
        return Rejected.of(error, maker, label).problems
    return []


def schema(maker: Callable[..., Any], without: frozenset[str] = frozenset()) -> type[BaseModel]:
    """What a class or function takes, where a reward among its arguments may be written by name."""
    return arguments.schema(maker, without, _annotation)


def _annotation(parameter: Parameter) -> Any:
    if registry.takes_reward(parameter):
        return Annotated[Any, AfterValidator(partial(_nested, "reward", picture_reward))]
    if registry.takes_search(parameter):
        return Annotated[Any, AfterValidator(partial(_nested, "search method", registry.search))]
    return arguments.annotation(parameter)


def _nested(what: str, find: Find, value: Any) -> Any:
    """What is written inside another, a name or {name: ..., arguments}, as the latter with converted arguments."""
    spec = {"name": value} if isinstance(value, str) else value
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise ValueError(f"is a {what}: write its name, or {{name: ..., arguments}}; got {value!r}")
    given = {name: inner for name, inner in spec.items() if name != "name"}
    if found := problems(spec["name"], given, find):
        raise Rejected(found)
    return {"name": spec["name"], **convert(find(spec["name"]), given)}


def picture_reward(name: str) -> Callable[..., Any]:
    """What makes a reward that scores pictures one by one."""
    return _refusing({"set", "group"}, name)


def trained_reward(name: str) -> Callable[..., Any]:
    """What makes a reward that can be trained on."""
    return _refusing({"set"}, name)


def _refusing(kinds: set[str], name: str) -> Callable[..., Any]:
    maker = registry.reward_maker(name)
    match kind(maker):
        case "set" if "set" in kinds:
            raise DiffalignError(
                f"{name} gives one number to a whole set of pictures, so no picture learns from it; "
                "put it under `eval_rewards`"
            )
        case "group" if "group" in kinds:
            raise DiffalignError(
                f"{name} compares all pictures of a prompt; it cannot work inside another reward"
            )
    return maker
