"""Prompts that are longer than the tokenizers take: noticed where the pipeline itself cuts them off."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffalign.errors import DiffalignError


class PromptLengths:
    """Watches a pipeline's tokenizers; a prompt that every one of them truncates is refused."""

    def __init__(self, pipe: Any) -> None:
        self.on = True
        self.seen: list[tuple[int, int]] = []
        for name, part in pipe.components.items():
            if name.startswith("tokenizer") and callable(part):
                pipe.__dict__[name] = self._watched(part)

    @contextmanager
    def checking(self, prompt: str) -> Iterator[None]:
        """Refuse this prompt if what is encoded within the context was cut off by every tokenizer."""
        self.seen.clear()
        yield
        tried = self.seen
        if self.on and tried and all(length > limit for length, limit in tried):
            length, limit = max(tried, key=lambda pair: pair[1])
            raise DiffalignError(
                f"the prompt {prompt!r} has {length} tokens and this model takes {limit}: shorten it, or its end "
                "would be ignored without a word."
            )

    @contextmanager
    def unchecked(self) -> Iterator[None]:
        """Encode whatever comes."""
        self.on = False
        try:
            yield
        finally:
            self.on = True

    def _watched(self, tokenizer: Any) -> Any:
        base, lengths = type(tokenizer), self

        @functools.wraps(base.__call__)
        def call(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
            limit = kwargs.get("max_length") or self.model_max_length
            if lengths.on and text is not None and kwargs.get("truncation"):
                full = base.__call__(self, text, verbose=False)["input_ids"]
                lengths.note(full, limit)
            return base.__call__(self, text, *args, **kwargs)

        own = copy.copy(tokenizer)
        own.__class__ = type(base.__name__, (base,), {"__call__": call})
        return own

    def note(self, ids: Any, limit: int) -> None:
        """Remember how long a text is and how long it may be."""
        first = ids[0] if len(ids) and isinstance(ids[0], list) else ids
        self.seen.append((len(first), limit))
