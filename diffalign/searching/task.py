"""What a search sees: it draws noise, denoises, decodes and scores through this object, which counts the cost.

Random numbers belong to a prompt and a particle, so nothing depends on what else is in a batch.
Dimensions: P prompts, B samples; owner (B,) names the prompt of each sample, member (B,) its particle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffalign.errors import DiffalignError, RunError
from diffalign.models.conditioning import Conditioning
from diffalign.policy import Policy
from diffalign.rewarding.compose import Composite
from diffalign.searching.found import Best, Found
from diffalign.searching.ledger import Ledger, costs
from diffalign.seeds import derive
from diffalign.steps import StepRule
from diffalign.walk import Step, chunks, step

Listener = Callable[[int, float], None]
"""Hears of a prompt's index and its best total reward whenever one of its samples was scored."""


@dataclass
class Task:
    """Prompts to search for with a policy, a step rule and a reward; `batch` samples are computed at once.

    copies: how often each prompt was searched for before, where this task holds a part of a longer list.
    """

    policy: Policy
    reward: Composite
    prompts: Sequence[str]
    rule: StepRule
    seed: int = 0
    batch: int = 16
    listen: Listener = lambda prompt, best: None
    copies: Sequence[int] = ()
    ledger: Ledger = field(init=False)
    best: Best = field(init=False)
    cond: Conditioning = field(init=False)

    def __post_init__(self) -> None:
        if self.reward.compares:
            raise DiffalignError(
                "a search scores every picture by itself, and this reward compares all pictures of a prompt: it "
                "would say something else in another batch. Search with rewards that score single pictures."
            )
        self.copies = self.copies or earlier(self.prompts)
        self.ledger, self.best = Ledger(len(self.prompts)), Best(self.prompts)
        self.cond = self.policy.encode(list(self.prompts))
        self.reward.prepare(list(dict.fromkeys(self.prompts)))

    # -- who is who ---------------------------------------------------------------------------

    @property
    def everyone(self) -> Tensor:
        """Every prompt once, (P,)."""
        return torch.arange(len(self.prompts))

    def seeds(self, purpose: str, owner: Tensor, member: Tensor) -> list[int]:
        """A seed for each sample: it depends on the text of its prompt and on the particle alone."""
        pairs = zip(owner.tolist(), member.tolist(), strict=True)
        return [derive(self.seed, purpose, self.prompts[o], self.copies[o], m) for o, m in pairs]

    def noise(self, owner: Tensor, member: Tensor) -> Tensor:
        """Initial latents (B, ...)."""
        return self.policy.noise(self.seeds("noise", owner, member))

    def texts(self, owner: Tensor) -> list[str]:
        """The prompt of each sample."""
        return [self.prompts[o] for o in owner.tolist()]

    def chunks(self, count: int) -> Iterator[Tensor]:
        """The indices 0 ... count - 1, `batch` at a time."""
        return chunks(count, self.batch)

    # -- denoising ----------------------------------------------------------------------------

    def step(self, x: Tensor, i: Tensor, owner: Tensor, seeds: Sequence[int]) -> Step:
        """One step of samples x (B, ...) from levels i (B,), with whatever gradient is on; all at once."""
        for kind, times in costs(self.policy, i).items():
            self.ledger.add(kind, owner.repeat_interleave(times.to(owner.device)))
        return step(self.policy, self.rule, self.policy.grid, x, i, self.cond[owner.tolist()], seeds)

    def denoise(
        self, x: Tensor, owner: Tensor, seeds: Sequence[int], start: int = 0, stop: int | None = None
    ) -> Tensor:
        """Samples x (B, ...) from level `start` to level `stop` (the end), with whatever gradient is on."""
        for k in range(start, self.policy.grid.steps if stop is None else stop):
            x = self.step(x, torch.full((len(x),), k, device=x.device), owner, seeds).next
        return x

    @torch.no_grad()
    def advance(self, x: Tensor, i: Tensor, owner: Tensor, seeds: Sequence[int]) -> Step:
        """One step without gradients, `batch` samples at a time."""
        return Step.cat(
            [
                self.step(
                    x[rows.to(x.device)], i[rows].to(x.device), owner[rows], [seeds[r] for r in rows.tolist()]
                )
                for rows in self.chunks(len(x))
            ]
        )

    @torch.no_grad()
    def sample(
        self, x: Tensor, owner: Tensor, seeds: Sequence[int], start: int = 0, stop: int | None = None
    ) -> Tensor:
        """The same without gradients, `batch` samples at a time."""
        pieces = [
            self.denoise(x[rows.to(x.device)], owner[rows], [seeds[r] for r in rows.tolist()], start, stop)
            for rows in self.chunks(len(x))
        ]
        return torch.cat(pieces)

    # -- scoring ------------------------------------------------------------------------------

    def scores(self, latents: Tensor, owner: Tensor) -> dict[str, Tensor]:
        """ "total" and every reward (B,) of latents (B, ...), with whatever gradient is on; all at once.

        A score that is not finite makes the total minus infinity: that sample loses, and is counted.
        """
        texts = self.texts(owner)
        parts = self.reward.measure(self.policy.decode(latents), texts, owner, finite=False)
        total = self.reward.combine(parts, texts)
        lost = ~total.isfinite()
        self.ledger.add("reward_calls", owner)
        self.ledger.add("lost", owner[lost.cpu()])
        return {"total": total.masked_fill(lost, -torch.inf), **parts}

    @torch.no_grad()
    def score(self, latents: Tensor, owner: Tensor) -> dict[str, Tensor]:
        """The same without gradients, `batch` samples at a time, on the CPU."""
        pieces = [
            self.scores(latents[rows.to(latents.device)], owner[rows]) for rows in self.chunks(len(owner))
        ]
        return {name: torch.cat([piece[name].cpu() for piece in pieces]) for name in pieces[0]}

    def offer(self, owner: Tensor, latents: Tensor, noise: Tensor, scores: dict[str, Tensor]) -> None:
        """Offer finished samples (B, ...), made of this noise (B, ...), with their scores to their prompts."""
        for b, prompt in enumerate(owner.tolist()):
            own = {name: float(values[b].detach()) for name, values in scores.items()}
            self.best.offer(prompt, latents[b], noise[b], own, self.ledger.of(prompt))
            self.listen(prompt, self.best.total(prompt))

    def found(self, extras: Sequence[dict[str, object]] = ()) -> Found:
        """What was found; an error if some prompt was never offered a sample that could be scored."""
        never = [p for k, p in enumerate(self.prompts) if self.best.total(k) == -torch.inf]
        if never:
            raise RunError(
                f"no sample of {len(never)} prompt(s) got a finite reward, the first {never[0]!r}. Look at the reward "
                "with `diffalign reward check`."
            )
        return self.best.found([self.ledger.of(int(p)) for p in self.everyone], extras)


def earlier(prompts: Sequence[str]) -> list[int]:
    """How often the same text stands before each prompt."""
    seen: Counter[str] = Counter()
    counts = []
    for prompt in prompts:
        counts.append(seen[prompt])
        seen[prompt] += 1
    return counts
