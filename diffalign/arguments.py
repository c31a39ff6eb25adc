"""What a class or function takes, checked against what a config gives it before anything is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, create_model

from diffalign import registry
from diffalign.configfile import Rejected
from diffalign.errors import DiffalignError
from diffalign.reward import kind

Find = Callable[[str], Callable[..., Any]]
Problem = tuple[str, str]
"""(key below the checked one, message)."""


class Strict(BaseModel):
    """No unknown keys, and no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, validate_default=True)


class Named(Strict):
    """A name and the arguments of what it names."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """Everything but the keys of this class."""
        return dict(self.model_extra or {})


def fits(value: Named, find: Find) -> Named:
    """The value as it is, if what it names exists and takes its arguments."""
    if found := problems(value.name, value.arguments, find):
        raise Rejected(found)
    return value


def problems(name: str, arguments: Mapping[str, Any], find: Find, label: str = "") -> list[Problem]:
    """What is wrong with a name or its arguments."""
    try:
        maker = schema(find(name))
    except DiffalignError as error:
        return [(f"{label}.name".strip("."), str(error))]
    return misfits(maker, arguments, label)


def misfits(maker: type[BaseModel], arguments: Mapping[str, Any], label: str = "") -> list[Problem]:
    """What is wrong with the arguments of something that is known."""
    try:
        maker.model_validate(dict(arguments))
    except ValueError as error:
        return Rejected.of(error, maker, label).problems
    return []


def schema(maker: Callable[..., Any], without: frozenset[str] = frozenset()) -> type[BaseModel]:
    """What a class or function takes, as a model that refuses unknown arguments."""
    known = [p for p in registry.parameters(maker).values() if p.name not in without]
    named: Mapping[str, Any] = {
        p.name: (_annotation(p), ... if p.default is p.empty else p.default)
        for p in known
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    extra: Literal["allow", "forbid"] = "allow" if any(p.kind is p.VAR_KEYWORD for p in known) else "forbid"
    return create_model(
        "Arguments", __config__=ConfigDict(extra=extra, arbitrary_types_allowed=True), **named
    )


def _annotation(parameter: Any) -> Any:
    if registry.takes_reward(parameter):
        return Annotated[Any, AfterValidator(partial(_nested, parameter.name))]
    return Any if parameter.annotation is parameter.empty else parameter.annotation


def _nested(key: str, value: Any) -> Any:
    """A reward inside another one: a name, or {name: ..., arguments}."""
    spec = {"name": value} if isinstance(value, str) else value
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise ValueError(f"is a reward: write its name, or {{name: ..., arguments}}; got {value!r}")
    given = {name: inner for name, inner in spec.items() if name != "name"}
    if found := problems(spec["name"], given, picture_reward):
        raise Rejected(found)
    return value


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
