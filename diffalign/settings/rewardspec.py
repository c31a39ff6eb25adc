"""The rewards of a config and how they are combined: what fits and what does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator

from diffalign import registry
from diffalign.errors import DiffalignError
from diffalign.rewarding.compose import problems as composition_problems
from diffalign.settings.configfile import Rejected
from diffalign.settings.named import Find, Named, Problem, filled, misfits, problems, schema

NOT_IN_A_CONFIG = frozenset({"url", "check", "token"})
"""What a server's address is not followed by; a token in a config would be copied into every run's folder."""


class RewardSpec(Named):
    """A reward, its weight, its arguments, and where it runs if not here.

    url: a server's address. python: the interpreter of another environment that has the reward.
    """

    name: str = ""
    weight: float = 1.0
    url: str | None = None
    python: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if not (self.name or self.url):
            raise ValueError("has no `name`; give one, or the `url` of a server")
        if self.url and self.python:
            raise ValueError("has a `url` and a `python`; a reward runs in one place")
        return self

    @property
    def elsewhere(self) -> bool:
        """Whether another process computes it, which alone knows its arguments."""
        return bool(self.url or self.python)


def all_fit(specs: dict[str, RewardSpec], find: Find) -> dict[str, RewardSpec]:
    """The rewards as they are, if each exists here and takes its arguments."""
    if found := [problem for label, spec in specs.items() for problem in _wrong(spec, find, label)]:
        raise Rejected(found)
    return specs


def _wrong(spec: RewardSpec, find: Find, label: str) -> list[Problem]:
    if spec.url:
        from diffalign.serving.remote import connect

        return misfits(schema(connect, without=NOT_IN_A_CONFIG), spec.arguments, label)
    return [] if spec.python else problems(spec.name, spec.arguments, find, label)


def apart(watched: dict[str, RewardSpec], trained: Mapping[str, RewardSpec]) -> dict[str, RewardSpec]:
    """The rewards that are never trained on, if that is what they are."""
    known = {_identity(spec): label for label, spec in trained.items()}
    found = [
        (
            label,
            f"is trained on as {known[_identity(spec)]!r}, which is shown anyway; judge by another reward",
        )
        for label, spec in watched.items()
        if _identity(spec) in known
    ]
    twice = [
        (label, "is also a label of `rewards`; choose another") for label in watched.keys() & trained.keys()
    ]
    if found or twice:
        raise Rejected(found or sorted(twice))
    return watched


def _identity(spec: RewardSpec) -> str:
    """What a reward computes: its name and all its arguments, defaults included."""
    arguments = spec.arguments
    if not spec.elsewhere:
        arguments = filled(registry.reward_maker(spec.name), arguments)
    return repr((spec.name, spec.url, sorted(arguments.items())))


def combinable(combine: Named, data: Mapping[str, Any]) -> Named:
    """The combiner as it is, if it fits the rewards, `normalize` and `calibrate`."""
    rewards: Mapping[str, RewardSpec] | None = data.get("rewards")
    if not rewards or "normalize" not in data or "calibrate" not in data:
        return combine  # nothing to combine, or what is wrong with those is said already
    if found := _misfits(combine, rewards, data):
        raise Rejected(found)
    return combine


def _misfits(combine: Named, rewards: Mapping[str, RewardSpec], data: Mapping[str, Any]) -> list[Problem]:
    try:
        combiner = registry.combiner(combine.name)(**combine.arguments)
    except (DiffalignError, ValueError) as error:
        return [("name", str(error))]
    named = {label: spec.name or str(spec.url) for label, spec in rewards.items()}
    weights = {label: spec.weight for label, spec in rewards.items()}
    return list(composition_problems(combiner, named, weights, data["normalize"], data["calibrate"]))
