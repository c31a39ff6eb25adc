"""A reward behind a URL: `diffalign reward serve` on another machine or in another process.

Pictures travel with 8 bits a channel, so it scores what a saved picture would hold; no gradient comes
back. A server that fails is asked again, later and later, then the run stops so that it can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from diffalign.errors import DiffalignError
from diffalign.reward import Scores
from diffalign.serving import exchange, wire


class Remote:
    """Scores pictures as the server at the other end of an exchange does; scores come back on the CPU."""

    remote = True
    differentiable = False

    def __init__(self, over: exchange.Exchange) -> None:
        self.exchange = over
        self.stop: Callable[[], object] = lambda: None
        self.card = read_card(over)
        self.video = self.card.capabilities.get("video", False)
        self.needs_reference = self.card.capabilities.get("needs_reference", False)

    def __call__(self, images: Tensor, prompts: Sequence[str], **metadata: Any) -> Scores:
        """Scores (B,) of pictures (B, 3, H, W) or videos (B, F, 3, H, W) in [0, 1]."""
        if metadata:
            raise DiffalignError(
                f"{', '.join(metadata)}: only pictures and prompts reach a reward elsewhere."
            )
        pixels = wire.to_bytes(images)
        frames, area = pixels[0, ..., 0, 0, 0].numel(), pixels[0, ..., 0, :, :].numel()
        size = self.card.limits.fit(frames, area)
        starts = range(0, len(prompts), size)
        return joined([self._ask(pixels[k : k + size], prompts[k : k + size]) for k in starts])

    def close(self) -> None:
        """Let go of the server, and end it where it is our own."""
        self.exchange.close()
        self.stop()

    def _ask(self, pixels: Tensor, prompts: Sequence[str]) -> Scores:
        body = wire.encode(pixels, prompts).model_dump_json().encode()
        return self.exchange.post("/score", body, lambda answer: read_scores(answer, len(prompts)))


def connect(
    url: str,
    *,
    token: str | None = None,
    timeout: float = 60.0,
    tries: int = 8,
    check: Callable[[], None] = lambda: None,
) -> Remote:
    """The reward at a URL; the token is read from DIFFALIGN_REWARD_TOKEN where none is given.

    timeout: seconds a request may take. tries: how often it is sent, with growing pauses. check: see Exchange.
    """
    over = exchange.opened(url, token, timeout, exchange.Patience(tries), check)
    try:
        return Remote(over)
    except DiffalignError:
        over.close()
        raise


def read_card(over: exchange.Exchange) -> wire.Card:
    """What is served there; an error says how to serve something."""
    try:
        card = wire.Card.model_validate_json(over.get("/card"))
    except (exchange.Failed, ValueError) as error:
        raise DiffalignError(
            f"no reward answers at {over.url}: {error} Start one there: diffalign reward serve NAME --port "
            f"{urlsplit(over.url).port or 80} (a token is read from {wire.TOKEN} on both sides)."
        ) from error
    if card.protocol != wire.PROTOCOL:
        raise DiffalignError(
            f"{over.url} speaks protocol {card.protocol}, this diffalign {wire.PROTOCOL}; use one version on both."
        )
    return card


def read_scores(answer: bytes, items: int) -> Scores:
    """The scores of so many items, or Failed: a server that answers anything else is asked again."""
    try:
        scores = wire.Answer.model_validate_json(answer).scores()
    except ValueError as error:
        shown = exchange.shortened(answer)
        raise exchange.Failed(f"it answered something that is not scores: {shown}.") from error
    unsure = [] if scores.uncertainty is None else [scores.uncertainty]
    wrong = {len(v) for v in [scores.value, *scores.parts.values(), *unsure]} - {items}
    if wrong:
        raise exchange.Failed(f"it answered {wrong.pop()} scores for {items} pictures.")
    if not bool(scores.value.isfinite().all()):
        raise exchange.Failed("it answered scores that are not finite.")
    return scores


def joined(pieces: Sequence[Scores]) -> Scores:
    """The scores of consecutive pieces as one."""
    parts = {name: torch.cat([piece.parts[name] for piece in pieces]) for name in pieces[0].parts}
    unsure = [piece.uncertainty for piece in pieces if piece.uncertainty is not None]
    return Scores(torch.cat([piece.value for piece in pieces]), parts, torch.cat(unsure) if unsure else None)
