"""The models of a session, and pairs of pictures by them, which the store keeps."""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from diffalign.errors import DiffalignError
from diffalign.preferences import Store
from diffalign_demo.app.artist import Artist
from diffalign_demo.app.choosing import Kind, next_models, next_prompt


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt, in no particular order."""

    prompt: str
    pictures: tuple[str, str]
    kind: Kind


class Studio:
    """`main` is the model that votes train; judged are it, as it was and as it is, and the `judges`.

    candidates: pictures that are drawn for a pair to train on, of which the two most different are shown.
    """

    def __init__(
        self,
        store: Store,
        prompts: Sequence[str],
        main: Artist,
        judges: Sequence[Artist],
        candidates: int = 2,
    ) -> None:
        self.store, self.prompts, self.main, self.judges = store, list(prompts), main, list(judges)
        self.candidates = candidates
        self._pick = random.SystemRandom()

    def models(self) -> list[str]:
        """The names of the models that can be judged now."""
        return list(dict.fromkeys([self.main.title, self.main.name, *(judge.name for judge in self.judges)]))

    def paint(self, kind: Kind, prompts: Sequence[str | None]) -> list[Pair]:
        """A pair for each prompt; None stands for one that is chosen here."""
        votes = self.store.votes() if kind.how == "informed" else []
        texts = [text or next_prompt(self.prompts, votes, kind.how, self._pick) for text in prompts]
        if kind.mode == "train":
            return self._of_one(kind, texts)
        return [
            self._of_two(kind, text, next_models(self.judged(), votes, kind.how, self._pick))
            for text in texts
        ]

    def judged(self) -> list[str]:
        """The names of the models, where there are two to compare."""
        if len(names := self.models()) < 2:
            raise DiffalignError(
                f"there is one model alone, {names[0]}. Train it from votes first (tab Align), or start the app with "
                "--judge MODEL_OR_LORA."
            )
        return names

    def _of_one(self, kind: Kind, texts: Sequence[str]) -> list[Pair]:
        seeds = [secrets.randbits(62) for _ in texts]
        drawn = self.candidates if kind.how == "informed" else 2
        name, images, batch = self.main.pairs(texts, seeds, drawn)
        kept = [
            self.store.pictures.add(
                image, prompt=batch.prompts[row], model=name, seed=seeds[row // 2],
                trajectory=batch[[row]] if self.main.trainable else None,
            )
            for row, image in enumerate(images)
        ]  # fmt: skip
        pairs = zip(texts, kept[::2], kept[1::2], strict=True)
        return [Pair(text, (one, other), kind) for text, one, other in pairs if one != other]

    def _of_two(self, kind: Kind, text: str, models: Sequence[str]) -> Pair:
        seed = secrets.randbits(62)
        one, other = (self._by(model, text, seed) for model in models)
        return Pair(text, (one, other), kind)

    def _by(self, model: str, text: str, seed: int) -> str:
        """The picture that a model makes of a prompt and a seed."""
        known = {judge.name: judge for judge in self.judges}
        artist = known.get(model, self.main)
        w = 0.0 if artist is self.main and model == self.main.title else 1.0
        name, images = artist.draw([text], [seed], w)
        return self.store.pictures.add(images[0], prompt=text, model=name, seed=seed)
