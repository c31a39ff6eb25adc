"""What an algorithm sees of a run: it samples, scores, re-scores and records through this object.

Dimensions: B samples of this process, K pictures per prompt, N steps, C cells of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from diffalign.credit import groups
from diffalign.errors import DiffalignError
from diffalign.metrics import Metrics, describe
from diffalign.policy import Policy
from diffalign.rewarding.compose import Composite, composed
from diffalign.rewarding.overlap import Ahead, apart
from diffalign.seeds import derive, generator
from diffalign.steps import Gaussian, StepRule
from diffalign.trajectory import Trajectory
from diffalign.walk import chunks, decode, rescore, rollout

Piece = tuple[Tensor, dict[str, Tensor]]
"""Rows (B,) and their scores by name, (B,) each."""

KL_SAMPLES = 4
"""Samples a process spends on the exact KL of a round (each costs two trajectories' denoiser calls)."""


@dataclass(frozen=True)
class Batching:
    """How many of what: prompts and updates are per round over all processes, batches per process.

    sample_batch counts pictures, micro_batch counts samples x steps that pass the denoiser at once.
    """

    prompts_per_round: int
    images_per_prompt: int
    updates_per_round: int = 1
    sample_batch: int = 16
    micro_batch: int = 16

    def check(self, processes: int) -> None:
        """Every update must get the same number of whole prompts from every process."""
        share = self.updates_per_round * processes
        if self.prompts_per_round % share:
            raise DiffalignError(
                f"prompts_per_round = {self.prompts_per_round} does not divide into updates_per_round = "
                f"{self.updates_per_round} x {processes} process(es). Make it a multiple of {share}."
            )

    def describe(self, processes: int) -> str:
        """The batch arithmetic in one line."""
        return (
            f"{self.prompts_per_round} prompts x {self.images_per_prompt} pictures a round on {processes} "
            f"process(es), {self.updates_per_round} update(s) of "
            f"{self.prompts_per_round // self.updates_per_round} prompts each"
        )


@dataclass
class Run:
    """The policy, the reward and the numbers of a run; a single reward is taken as a composite of one.

    The trainer sets `round`, `update`: how many optimizer steps this round has seen, and `interrupted`:
    whether somebody asked for its end.
    """

    policy: Policy
    rule: StepRule
    reward: Composite
    prompts: Sequence[str]
    batching: Batching
    seed: int = 0
    accelerator: Accelerator = field(default_factory=Accelerator)
    metrics: Metrics = field(default_factory=Metrics)
    advance: Callable[[str, int], None] = lambda phase, n: None
    interrupted: Callable[[], bool] = lambda: False
    round: int = 0
    update: int = 0
    reward_calls: int = 0
    reward_row: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reward = composed(self.reward)

    def describe(self) -> str:
        """What a round is made of."""
        return self.batching.describe(self.accelerator.num_processes)

    @property
    def fresh(self) -> bool:
        """Whether the weights are still those of this round's rollout."""
        return self.update == 0

    def generator(self, purpose: str) -> torch.Generator:
        """Random numbers of this process for one purpose at this point of the run."""
        return generator(self.seed, purpose, self.round, self.update, self.accelerator.process_index)

    # -- collecting ---------------------------------------------------------------------------

    def draw(self) -> list[tuple[int, str]]:
        """(group, prompt) of this process in this round; epochs are permutations of the prompts.

        Groups are dealt so that every update sees the same prompts whatever the number of processes.
        """
        first = self.round * self.batching.prompts_per_round
        return [(g, self._prompt(first + g)) for g in self.own_groups()]

    def own_groups(self) -> list[int]:
        """This process's groups of a round's; every update has the same number of each process's."""
        b, rank, count = self.batching, self.accelerator.process_index, self.accelerator.num_processes
        per_update = b.prompts_per_round // b.updates_per_round
        return [g for g in range(b.prompts_per_round) if g % per_update // (per_update // count) == rank]

    def _prompt(self, position: int) -> str:
        epoch, place = divmod(position, len(self.prompts))
        order = torch.randperm(len(self.prompts), generator=generator(self.seed, "prompts", epoch))
        return self.prompts[int(order[place])]

    def sample(self, *, share_noise: bool = False) -> Trajectory:
        """Roll out K pictures for each of this round's prompts and score them.

        share_noise gives all pictures of a prompt the same x_T.
        """
        members = [
            (g, k, prompt) for g, prompt in self.draw() for k in range(self.batching.images_per_prompt)
        ]
        prompts, group = [prompt for *_, prompt in members], torch.tensor([g for g, *_ in members])
        with Ahead[Piece]() as ahead:
            with self.metrics.timed("sample"):
                batch = rollout(
                    self.policy,
                    self.rule,
                    prompts,
                    [derive(self.seed, "steps", self.round, g, k) for g, k, _ in members],
                    noise_seeds=[
                        derive(self.seed, "noise", self.round, g, 0 if share_noise else k)
                        for g, k, _ in members
                    ],
                    group=group.tolist(),
                    batch=self.batching.sample_batch,
                    version=self.round,
                    advance=lambda n: self.advance("sampling", n),
                    finished=self._meanwhile(ahead, prompts, group),
                )
            with self.metrics.timed("score"):
                early = ahead.results()
                parts = self._joined(early) if early else self.measure(batch.final, prompts, group)
        batch.rewards = {"total": self.reward.combine(parts, prompts, group)} | parts
        self._record(batch)
        return batch

    @torch.no_grad()
    def measure(self, latents: Tensor, prompts: Sequence[str], group: Tensor) -> dict[str, Tensor]:
        """Every reward's own scores (B,) of latents (B, ...), before they are combined, on the CPU.

        group (B,) names the prompt each belongs to; all of a prompt's latents must be there.
        """
        self.reward.prepare(prompts)
        return self._joined(
            [
                self._piece(rows, self.decode(latents[rows.to(latents.device)]), prompts, group)
                for rows in self._portions(group)
            ]
        )

    def _meanwhile(
        self, ahead: Ahead[Piece], prompts: Sequence[str], group: Tensor
    ) -> Callable[[Tensor, Tensor], None]:
        """What to do with sampled batches: score them while sampling goes on, or nothing yet."""
        if self.reward.compares or not apart(self.reward.rewards.values(), self.policy.device):
            return lambda rows, latents: None

        def score(rows: Tensor, latents: Tensor) -> None:
            images = self.decode(latents).cpu()
            ahead.call(lambda: self._piece(rows, images, prompts, group))

        self.reward.prepare(prompts)
        return score

    @torch.no_grad()
    def _piece(self, rows: Tensor, images: Tensor, prompts: Sequence[str], group: Tensor) -> Piece:
        """Scores of some rows' pictures, with the rows."""
        found = self.reward.measure(images, [prompts[r] for r in rows.tolist()], group[rows])
        return rows, {name: values.cpu() for name, values in found.items()}

    def _joined(self, pieces: Sequence[Piece]) -> dict[str, Tensor]:
        """Scores in the order of the rows."""
        back = torch.cat([rows for rows, _ in pieces]).argsort()
        self.reward_calls += len(back) * len(self.reward.rewards)
        return {name: torch.cat([found[name] for _, found in pieces])[back] for name in pieces[0][1]}

    def _portions(self, group: Tensor) -> Iterator[Tensor]:
        """Rows that are scored together: `sample_batch`, or a prompt's where a reward compares them."""
        return groups(group) if self.reward.compares else chunks(len(group), self.batching.sample_batch)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents (B, ...), `sample_batch` at a time."""
        return decode(self.policy, latents, self.batching.sample_batch)

    def _record(self, batch: Trajectory) -> None:
        """The round's rewards over all processes; the total as it is before normalising within prompts."""
        shown = batch.rewards | {"total": self.reward.combine(batch.rewards, batch.prompts)}
        gathered = {name: self.gather(values) for name, values in shown.items()}
        self.reward_row = self.reward.combiner.row()
        for name, values in gathered.items():
            self.reward_row |= describe(f"reward/{name}", values)
        with self.metrics.timed("kl"):
            self.metrics.add("kl", self.kl(batch))
        self.reward.observe({name: float(values.double().mean()) for name, values in gathered.items()})

    def gather(self, values: Tensor) -> Tensor:
        """The values (B, ...) of all processes, process by process, on the CPU."""
        gathered: Tensor = self.accelerator.gather(values.to(self.accelerator.device))
        return gathered.cpu()

    def gather_prompts(self, batch: Trajectory) -> list[str]:
        """The prompts of all processes, in the order of `gather`."""
        prompts: list[str] = gather_object(batch.prompts)
        return prompts

    def own(self, gathered: Tensor, batch: Trajectory) -> Tensor:
        """This process's part of a tensor that `gather` made."""
        start = self.accelerator.process_index * len(batch)
        return gathered[start : start + len(batch)]

    @torch.no_grad()
    def reference(self, batch: Trajectory, *, means: bool = False) -> None:
        """Fill reference_log_probs (B, N), and reference_means where asked: once a rollout."""
        batch.reference_log_probs = torch.full_like(batch.log_probs, torch.nan)
        if means:
            batch.reference_means = torch.zeros_like(batch.states[:, 1:], dtype=torch.float32)
        with self.metrics.timed("reference"), self.policy.using("reference"):
            for rows, cols in self._as_sampled(batch):
                dist, log_prob = self.transition(batch, rows, cols)
                batch.reference_log_probs[rows, cols] = log_prob.to(batch.log_probs)
                if batch.reference_means is not None:
                    batch.reference_means[rows, cols] = dist.mean
                self.advance("reference", len(rows))

    def _as_sampled(self, batch: Trajectory) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows, cols) in the batches of the rollout, so that equal weights give equal bits."""
        for rows in chunks(len(batch), self.batching.sample_batch):
            for col in batch.live.tolist():
                yield rows, torch.full_like(rows, col)

    @torch.no_grad()
    def kl(self, batch: Trajectory) -> Tensor:
        """Exact KL(policy || reference) in nats over all steps, of a few samples of the batch."""
        some = torch.arange(0, len(batch), max(1, len(batch) // KL_SAMPLES))[:KL_SAMPLES]
        total = torch.zeros(len(batch))
        for rows, cols in self.transitions(batch, some):
            now = rescore(self.policy, batch, rows, cols)
            with self.policy.using("reference"):
                then = rescore(self.policy, batch, rows, cols)
            total.index_add_(0, rows, now.kl(then).cpu())
        return total[some]

    # -- updating -----------------------------------------------------------------------------

    def split(self, batch: Trajectory, parts: int | None = None) -> Iterator[Trajectory]:
        """The minibatches of a round: whole prompts, in the order they were dealt."""
        rows = list(groups(batch.group))
        parts = parts or self.batching.updates_per_round
        for part in torch.arange(len(rows)).tensor_split(parts):
            yield batch[torch.cat([rows[k] for k in part.tolist()])]

    def cells(
        self, batch: Trajectory, members: Tensor, steps: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro-batches of (rows, cols), both (C, K): members (G, K) go together through a step.

        Runs over all stochastic steps, or those given, with at most micro_batch samples at once.
        """
        steps = batch.live if steps is None else steps
        which = torch.cartesian_prod(torch.arange(len(members)), steps)
        size = self.batching.micro_batch // members.shape[1]
        if not size:
            raise DiffalignError(
                f"micro_batch = {self.batching.micro_batch} is smaller than the {members.shape[1]} samples that go "
                f"through the denoiser together; make it {members.shape[1]} or more."
            )
        for piece in torch.split(which, size):
            rows = members[piece[:, 0]]
            yield rows, piece[:, 1:].expand_as(rows)

    def some_steps(self, batch: Trajectory, fraction: float) -> Tensor:
        """A share of the stochastic steps (at least one), drawn anew for each update."""
        order = torch.randperm(len(batch.live), generator=self.generator("timesteps"))
        return batch.live[order[: max(1, round(fraction * len(order)))]]

    def transitions(self, batch: Trajectory, rows: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro-batches of (rows, cols), both (M,), over all samples or those given."""
        rows = torch.arange(len(batch)) if rows is None else rows
        for r, c in self.cells(batch, rows[:, None]):
            yield r.flatten(), c.flatten()

    def transition(self, batch: Trajectory, rows: Tensor, cols: Tensor) -> tuple[Gaussian, Tensor]:
        """The policy's distribution at stored transitions (M,), and their log-probs in nats (M,)."""
        dist = rescore(self.policy, batch, rows, cols)
        device = batch.states.device
        log_prob = dist.log_prob(batch.states[rows.to(device), cols.to(device) + 1])
        if log_prob.requires_grad:
            self._watch(batch, rows, cols, log_prob)
        return dist, log_prob

    def _watch(self, batch: Trajectory, rows: Tensor, cols: Tensor, log_prob: Tensor) -> None:
        """Record the ratio to the rollout's policy per dimension: 1 while weights are unchanged."""
        moved = (log_prob.detach() - batch.log_probs[rows, cols]) / batch.dim
        self.record("ratio/mean", moved.exp())
        if self.fresh:
            self.record("ratio/deviation", moved.abs(), how="max")
        self.advance("update", len(rows))

    def log_prob(self, batch: Trajectory, rows: Tensor, cols: Tensor) -> Tensor:
        """Log-probs in nats of stored transitions, in the shape of rows and cols."""
        return self.transition(batch, rows.flatten(), cols.flatten())[1].reshape(rows.shape)

    def record(self, name: str, values: Tensor | float, **how: Any) -> None:
        """Log a value under a name; the round's row holds the mean (or `how="max"`)."""
        self.metrics.add(name, values, **how)
