"""A policy that predicts otherwise and is the wrapped one in everything else, so that every method can use it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffalign.policy import Policy

    Interface = Policy
else:
    Interface = object


class Altered(Interface):
    """Base of `Mixed` and `Guided`: a subclass writes `predict`, and `costs` where a pass costs more.

    They can be put around each other.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __getattr__(self, name: str) -> Any:
        if name == "policy":  # not set yet: a copy under way
            raise AttributeError(name)
        return getattr(self.policy, name)
