"""Prompts that are longer than the tokenizers take: noticed where the pipeline itself cuts them off."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedTokenizerBase

from diffalign.errors import DiffalignError


class PromptLengths:
    """Watches a pipeline's tokenizers; a prompt that every one of them truncates is refused."""

    def __init__(self, pipe: Any) -> None:
        self.seen: dict[str, tuple[int, int]] | None = None
        parts = {n: p for n, p in pipe.components.items() if n.startswith("tokenizer") and callable(p)}
        self.tokenizers = [part for part in parts.values() if isinstance(part, PreTrainedTokenizerBase)]
        for name, part in parts.items():
            pipe.__dict__[name] = self._watched(name, part)

    def longest(self, prompts: Sequence[str]) -> list[str]:
        """Of all prompts the one with most tokens, for each tokenizer; without one, that with most letters."""
        counts = [[len(ids) for ids in t(list(prompts), verbose=False)["input_ids"]] for t in self.tokenizers]
        counts = counts or [[len(prompt) for prompt in prompts]]
        return list(dict.fromkeys(prompts[count.index(max(count))] for count in counts))

    @contextmanager
    def checking(self, prompt: str) -> Iterator[None]:
        """Refuse this prompt if, within the context, every tokenizer cuts off the longest text it gets."""
        self.seen = {}
        try:
            yield
            seen = list(self.seen.values())
        finally:
            self.seen = None
        if seen and all(length > limit for length, limit in seen):
            length, limit = max(seen, key=lambda pair: pair[1])
            raise DiffalignError(
                f"the prompt {prompt!r} (or its negative prompt) has {length} tokens and this model takes {limit}: "
                "shorten it, or its end would be ignored without a word."
            )

    def _watched(self, name: str, tokenizer: Any) -> Any:
        base, lengths = type(tokenizer), self

        @functools.wraps(base.__call__)
        def call(self: Any, text: Any = None, *args: Any, **kwargs: Any) -> Any:
            if lengths.seen is not None and text is not None and kwargs.get("truncation"):
                whole = base.__call__(self, text, verbose=False)["input_ids"]
                lengths._note(name, whole, kwargs.get("max_length") or self.model_max_length)
            return base.__call__(self, text, *args, **kwargs)

        own = copy.copy(tokenizer)
        own.__class__ = type(base.__name__, (base,), {"__call__": call})
        return own

    def _note(self, name: str, ids: Any, limit: int) -> None:
        """The longest text that this tokenizer was given, and how long it may be."""
        assert self.seen is not None
        rows = ids if len(ids) and isinstance(ids[0], list) else [ids]
        self.seen[name] = max((max(map(len, rows)), limit), self.seen.get(name, (0, limit)))
