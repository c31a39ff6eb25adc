"""Methods that alter the policy and leave the searching to another method."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace

from diffalign.policy import Policy
from diffalign.search import Found, Search, Task
from diffalign.search.best_of_n import BestOfN
from diffalign.steps import StepRule


@dataclass
class Altering(Search):
    """method: what searches with the altered policy; one sample a prompt, unless told otherwise."""

    method: Search = field(default_factory=lambda: BestOfN(1), kw_only=True)

    @abstractmethod
    def altered(self, policy: Policy) -> Policy:
        """The policy to search with; a DiffalignError where it cannot be made."""

    def default_rule(self, policy: Policy) -> StepRule:
        """That of the method."""
        return self.method.default_rule(policy)

    def check(self, task: Task) -> None:
        """Refuse what cannot be altered, and what the method refuses."""
        self.method.check(self._altered(task))

    def search(self, task: Task) -> Found:
        """See Search."""
        return self.method.run(self._altered(task))

    def _altered(self, task: Task) -> Task:
        return replace(task, policy=self.altered(task.policy))
