"""A search for many prompts: portion by portion, shared by processes, every prompt kept as soon as it is found.

Dimensions: P prompts of one portion.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffalign import __version__
from diffalign.folders.saving import finite
from diffalign.folders.searchfolder import SearchFolder
from diffalign.launching import redraw
from diffalign.policy import Policy
from diffalign.reward import AnyReward, kind
from diffalign.rewarding.compose import Composite
from diffalign.rewarding.measure import measure, prepare
from diffalign.search import Search
from diffalign.searching.found import Found
from diffalign.searching.task import Task, earlier
from diffalign.steps import StepRule
from diffalign.walk import chunks, decode

Heard = Callable[[int, float], None]
"""Hears of a prompt's number and its best reward, whenever one of its samples was scored."""


@dataclass
class Seeker:
    """A method, what it works on, and the folder that keeps what it finds.

    at_once: prompts of a portion; batch: samples computed at once; rank of processes: whose portions.
    watched: rewards that only judge. decoder: draws once more from the found noise. about: what every
    picture and result tells of the search.
    """

    method: Search
    policy: Policy
    rule: StepRule
    reward: Composite
    prompts: Sequence[str]
    folder: SearchFolder
    watched: Mapping[str, AnyReward] = field(default_factory=dict)
    decoder: Policy | None = None
    seed: int = 0
    at_once: int = 16
    batch: int = 16
    rank: int = 0
    processes: int = 1
    about: Mapping[str, Any] = field(default_factory=dict)
    hear: Heard = lambda number, best: None
    finished: Callable[[int], None] = lambda number: None

    def check(self) -> None:
        """Refuse what cannot work before anything is computed."""
        self.method.check(self._task([0]))
        if self.decoder:
            redraw.check(self.policy, self.decoder)

    def portions(self) -> list[list[int]]:
        """The prompts' numbers in portions, those of this process that are not finished.

        A portion is computed whole, as it was before a kill, so that what is found does not depend on it.
        Whose it is does not depend on what is finished, which other processes change meanwhile.
        """
        finished, every = self.folder.finished(), range(len(self.prompts))
        portions = [list(every[start : start + self.at_once]) for start in every[:: self.at_once]]
        own = portions[self.rank :: self.processes]
        return [portion for portion in own if not finished.issuperset(portion)]

    @property
    def left(self) -> int:
        """How many prompts of this process are not finished."""
        return len({number for portion in self.portions() for number in portion} - self.folder.finished())

    def run(self) -> None:
        """Search for every prompt of this process that is not finished."""
        for numbers in self.portions():
            begin = time.monotonic()
            found = self.method.run(self._task(numbers))
            latents, scores = self._looked_at(numbers, found)
            pictures = {tag: self._pictures(tag, x) for tag, x in latents.items()}
            for tag, images in pictures.items():
                scores[tag] = scores[tag] | self._judged(images, found.prompts)
            self._keep(numbers, found, scores, pictures, (time.monotonic() - begin) / len(numbers))

    @cached_property
    def _copies(self) -> list[int]:
        return earlier(self.prompts)

    def _task(self, numbers: Sequence[int]) -> Task:
        return Task(
            self.policy, self.reward, [self.prompts[n] for n in numbers], self.rule, seed=self.seed,
            batch=self.batch, copies=[self._copies[n] for n in numbers],
            listen=lambda prompt, best: self.hear(numbers[prompt], best),
        )  # fmt: skip

    def _looked_at(
        self, numbers: Sequence[int], found: Found
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Latents (P, ...) and scores (P,) by tag: "first", "best", and "decoded" where another model draws too."""
        latents = {"first": found.first_latents, "best": found.latents}
        scores = {"first": found.first_scores, "best": found.scores}
        if self.decoder:
            latents["decoded"], scores["decoded"] = redraw.redraw(
                self._task(numbers), found.noise, self.decoder
            )
        return latents, scores

    def _pictures(self, tag: str, latents: Tensor) -> Tensor:
        policy = self.decoder if self.decoder and tag == "decoded" else self.policy
        return decode(policy, latents, self.batch)

    @torch.no_grad()
    def _judged(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the rewards that only judge say of each picture by itself, (P,) by label."""
        single = {label: reward for label, reward in self.watched.items() if kind(reward) != "set"}
        prepare(single, prompts)
        pieces = [
            measure(single, images[rows], [prompts[r] for r in rows.tolist()], rows, finite=False)
            for rows in chunks(len(images), self.batch)
        ]
        return {label: torch.cat([piece[label] for piece in pieces]) for label in pieces[0]}

    def _keep(
        self,
        numbers: Sequence[int],
        found: Found,
        scores: Mapping[str, Mapping[str, Tensor]],
        pictures: Mapping[str, Tensor],
        seconds: float,
    ) -> None:
        """Write what is not there yet."""
        finished = self.folder.finished()
        for k, number in enumerate(numbers):
            if number in finished:
                continue
            told = {
                **self.about,
                "prompt": found.prompts[k],
                "scores": {tag: {n: float(v[k]) for n, v in own.items()} for tag, own in scores.items()},
                "cost": asdict(found.costs[k]),
                "seconds": seconds,
            }
            path = [{**asdict(mark.cost), "best": mark.best} for mark in found.paths[k]]
            extras = self._extras(number, found.extras[k])
            self.folder.write(
                number, {**told, "path": path, "extras": extras},
                {tag: images[k] for tag, images in pictures.items()}, notes(told),
                noise=found.noise[k], latents=found.latents[k], first_latents=found.first_latents[k],
            )  # fmt: skip
            self.finished(number)

    def _extras(self, number: int, extras: Mapping[str, Any]) -> dict[str, Any]:
        """What a method has to show, with a folder in place of what keeps itself, such as a tree."""
        own = {
            name: self.folder.extra(number, name) for name, value in extras.items() if hasattr(value, "save")
        }
        for name, folder in own.items():
            extras[name].save(folder)
        return {**extras, **{name: str(folder.relative_to(self.folder.path)) for name, folder in own.items()}}


def notes(told: Mapping[str, Any]) -> dict[str, str]:
    """What is written into a picture's file: the prompt, the program, and everything about it as JSON."""
    return {
        "Description": told["prompt"],
        "Software": f"diffalign {__version__}",
        "diffalign": json.dumps(finite(told), ensure_ascii=False),
    }
