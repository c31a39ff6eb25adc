"""Prompts to conditioning: each text once, alone, and remembered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffalign.errors import DiffalignError
from diffalign.models.capture import Capture
from diffalign.models.conditioning import Batch, Conditioning
from diffalign.models.lengths import PromptLengths

REMEMBERED = 1024
"""Prompts whose conditioning is kept; one of SDXL's with its negative takes 1.3 MB in float32."""


class Encoder:
    """Encodes the prompts of one capture; what was encoded stays known when the text encoders are gone."""

    def __init__(self, capture: Capture) -> None:
        self.capture, self.shell = capture, capture.shell
        self.lengths = PromptLengths(self.shell.pipe)
        self.known: dict[str, Batch] = {}

    @property
    def reads_text(self) -> bool:
        """Whether the pipeline takes prompts and has a text encoder."""
        parts = self.shell.pipe.components.items()
        return self.shell.takes("prompt") and any(
            part is not None for name, part in parts if name.startswith("text_encoder")
        )

    def texts(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of B prompts; encoded together only where a family cannot be padded."""
        if isinstance(prompts, str) or not len(prompts):
            raise DiffalignError(f"encode needs a list of at least one prompt, got {prompts!r}.")
        distinct = list(dict.fromkeys(prompts))
        if missing := [prompt for prompt in distinct if prompt not in self.known]:
            self.known |= self.shell.around_encoding(lambda: {p: self._alone(p) for p in missing})
        self._forget(keep=max(REMEMBERED, len(distinct)))
        try:
            batch = Batch.cat([self.known[prompt] for prompt in distinct])
        except DiffalignError:
            self._need_text_encoder(distinct)
            batch = self.capture.encode(distinct)
        cond = self.capture.prepared(Conditioning(batch))
        return cond[[distinct.index(prompt) for prompt in prompts]]

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that are too long for the model, by encoding the longest of them."""
        self.texts(self.lengths.longest(prompts))

    def embeds(self, given: dict[str, Any]) -> Batch:
        """Conditioning given as embeddings, with a row for each sample."""
        if not given:
            raise DiffalignError(
                "encode needs prompts, or embeddings under the pipeline's own argument names."
            )
        return self.capture.embeds(given, len(next(iter(given.values())))).to(self.shell.device)

    def _alone(self, prompt: str) -> Batch:
        self._need_text_encoder([prompt])
        with self.lengths.checking(prompt):
            return self.capture.encode([prompt])

    def _forget(self, keep: int) -> None:
        """Drop the oldest prompts beyond `keep`, as long as they can be encoded again."""
        while self.reads_text and len(self.known) > keep:
            del self.known[next(iter(self.known))]

    def _need_text_encoder(self, prompts: list[str]) -> None:
        if not self.reads_text:
            raise DiffalignError(
                f"these prompts need the text encoders, which are not there: {prompts[:3]}. Encode all prompts before "
                "free_text_encoders(), together if they are used together, or give embeddings."
            )
