"""Arguments of algorithms, rules and rewards, checked against the signature of what takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from diffalign.errors import DiffalignError


def parameters(maker: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The arguments that a class or a maker takes, by name, with evaluated annotations."""
    try:
        signature = inspect.signature(maker, eval_str=True)
    except (NameError, AttributeError, TypeError):  # annotations that only type checkers can evaluate
        signature = inspect.signature(maker)
        return {name: _hinted(parameter, maker) for name, parameter in signature.parameters.items()}
    except ValueError as error:
        raise DiffalignError(
            f"{error}, so its arguments are unknown; wrap it in a function of your own."
        ) from error
    return signature.parameters


def _hinted(parameter: inspect.Parameter, maker: Callable[..., Any]) -> inspect.Parameter:
    """The argument with the evaluated annotation of a dataclass's field, which may be another module's."""
    for owner in getattr(maker, "__mro__", ()):
        if parameter.name in vars(owner).get("__annotations__", {}):
            with suppress(NameError, AttributeError, TypeError):
                hints = get_type_hints(owner, include_extras=True)
                return parameter.replace(annotation=hints[parameter.name])
    return parameter


def annotation(parameter: inspect.Parameter) -> Any:
    """The type of an argument, as far as it is known."""
    unknown = parameter.annotation is parameter.empty or isinstance(parameter.annotation, str)
    return Any if unknown else parameter.annotation


def schema(
    maker: Callable[..., Any],
    without: frozenset[str] = frozenset(),
    typed: Callable[[inspect.Parameter], Any] = annotation,
) -> type[BaseModel]:
    """What a class or function takes, as a model that refuses unknown arguments and other types."""
    known = [p for p in parameters(maker).values() if p.name not in without]
    named: Mapping[str, Any] = {
        p.name: (typed(p), ... if p.default is p.empty else p.default)
        for p in known
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and not p.name.startswith("_")
    }
    extra: Literal["allow", "forbid"] = "allow" if any(p.kind is p.VAR_KEYWORD for p in known) else "forbid"
    rules = ConfigDict(extra=extra, strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return create_model("Arguments", __config__=rules, **named)
