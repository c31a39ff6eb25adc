"""Methods that spend compute and change no weights, one file each.

A method is a dataclass whose fields are its hyper-parameters; it is called with a policy, prompts and a
reward, and searches for each prompt by itself: what it finds depends on nothing else in the call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffalign.policy import Policy
from diffalign.reward import AnyReward
from diffalign.rewarding.compose import composed
from diffalign.searching.found import Found
from diffalign.searching.task import Task
from diffalign.steps import StepRule, default_rule

__all__ = ["Found", "Search", "Task"]


@dataclass
class Search(ABC):
    """What every method is called like; `plain` are the config's keys that suit it where no config is given."""

    plain: ClassVar[Mapping[str, Any]] = {}

    def __call__(
        self,
        policy: Policy,
        prompts: Sequence[str],
        reward: AnyReward,
        *,
        rule: StepRule | None = None,
        seed: int = 0,
        batch: int = 16,
    ) -> Found:
        """The best sample of each prompt by this reward; `batch` samples are computed at once."""
        chosen = rule or self.default_rule(policy)
        return self.run(Task(policy, composed(reward), prompts, chosen, seed=seed, batch=batch))

    def run(self, task: Task) -> Found:
        """Refuse what the method cannot do, then search."""
        self.check(task)
        return self.search(task)

    def default_rule(self, policy: Policy) -> StepRule:
        """The step rule that suits the method."""
        return default_rule(policy.grid)

    def check(self, task: Task) -> None:  # noqa: B027 - most methods take anything
        """Raise a DiffalignError where this method cannot work, before anything is computed."""

    @abstractmethod
    def search(self, task: Task) -> Found:
        """Offer samples to the task, and return what it found."""
