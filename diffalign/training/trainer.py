"""The training loop: collect, update, evaluate, checkpoint. It knows no algorithm by name."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from diffalign.algorithms import Algorithm
from diffalign.errors import DiffalignError, RunError
from diffalign.folders import checkpoint
from diffalign.folders.runfolder import RunFolder
from diffalign.folders.whole import appearing
from diffalign.metrics import forget_peak_memory, peak_memory_mb
from diffalign.rewarding.measure import close
from diffalign.run import Run
from diffalign.training.evaluate import Evaluator, Sheet
from diffalign.training.optimize import Optimizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """How long to train, how often to look, and when to stop early.

    max_kl is in nats; max_heldout_drop in standard deviations of the base model's score, for the
    trained reward and every other one on held-out prompts. on_limit "lower_lr" halves the rate in
    every round that is over a limit, instead of stopping.
    """

    rounds: int
    eval_every: int = 5
    checkpoint_every: int = 5
    keep_checkpoints: int = 2
    keep_best: bool = True
    max_kl: float | None = None
    max_heldout_drop: float | None = None
    on_limit: str = "stop"
    minutes: float | None = None


class Listener(Protocol):
    """Hears of every finished round (progress bars, trackers)."""

    def __call__(self, row: dict[str, Any]) -> None:
        """Take in a row of metrics."""
        ...


@dataclass
class Trainer:
    """Runs an algorithm for some rounds and leaves a run folder behind."""

    run: Run
    algorithm: Algorithm
    optimizer: Optimizer
    evaluator: Evaluator
    schedule: Schedule
    folder: RunFolder
    identity: dict[str, Any] = field(default_factory=dict)
    listen: Listener = lambda row: None
    stopped: str | None = field(default=None, init=False)
    best: tuple[dict[str, torch.Tensor], int] | None = field(default=None, init=False)
    seconds: float = field(default=0.0, init=False)
    latest: Sheet | None = field(default=None, init=False)
    pending: dict[str, Any] | None = field(default=None, init=False)

    def train(self, *, resume: bool = False) -> dict[str, Any]:
        """All rounds from the start, or from the last checkpoint; the summary."""
        self._show("base", self.evaluator.measure_base())
        self.run.metrics.row()  # its seconds belong to no round
        if resume:
            self._resume()
        start = time.monotonic() - self.seconds
        with interruptible() as interrupted:
            self.run.interrupted = interrupted
            if unfinished := self.pending:
                self.pending = None
                self._finish_round(unfinished, force=False)
            while self.run.round < self.schedule.rounds and not self.stopped:
                row = self.one_round()
                self.seconds = time.monotonic() - start
                pressed = self._anywhere(interrupted())
                self._finish_round(row, force=pressed)
                if pressed:
                    raise KeyboardInterrupt
        return self._finish()

    def close(self) -> None:
        """Let go of rewards that run elsewhere."""
        close(self.run.reward.rewards)
        close(self.evaluator.rewards)

    def one_round(self) -> dict[str, Any]:
        """Collect, then one optimizer step for every minibatch; the round's metrics."""
        run, calls, scored = self.run, self.run.policy.denoiser_calls, self.run.reward_calls
        run.update, self.latest = 0, None
        forget_peak_memory()
        with self._rescuing():
            batch = self.algorithm.collect(run)
        with run.metrics.timed("update"):
            for minibatch in self.algorithm.minibatches(run, batch):
                self._update(minibatch)
        row = {"round": run.round, **run.reward_row, **run.metrics.row(), "lr": self.optimizer.lr}
        row |= {
            "denoiser_calls": self._total(run.policy.denoiser_calls - calls),
            "reward_calls": self._total(run.reward_calls - scored),
        }
        self._check_ratio(row)
        return row | {"peak_memory_mb": peak_memory_mb()}

    def _update(self, minibatch: Any) -> None:
        total = 0.0
        for loss in self.algorithm.losses(self.run, minibatch):
            self.optimizer.backward(loss)
            total += float(loss.detach())
        self.run.record("objective", total)
        self.run.record("grad_norm", self.optimizer.step())
        self.run.update += 1

    def _check_ratio(self, row: dict[str, Any]) -> None:
        """Law 1: before the first update the ratio to the rollout's policy is 1, up to float noise."""
        limit = getattr(self.algorithm, "clip_range_mean", None) or getattr(self.algorithm, "clip_mean", None)
        if limit and row.get("ratio/deviation", 0.0) > limit / 10:
            logger.warning(
                "re-scoring the rollout with unchanged weights is off by %.1e nats per dimension, more than "
                "a tenth of the clip range %.1e: use equal sample_batch and micro_batch, or a wider dtype.",
                row["ratio/deviation"],
                limit,
            )

    # -- after a round ------------------------------------------------------------------------

    def _finish_round(self, row: dict[str, Any], *, force: bool) -> None:
        run, plan = self.run, self.schedule
        run.round += 1
        last = run.round >= plan.rounds
        if run.round % plan.eval_every == 0 or last:
            with self._rescuing(row):
                row |= self._evaluate() | run.metrics.row()
        self._apply_limits(row)
        self.folder.log(row)
        self.listen(row)
        if force or last or self.stopped or run.round % plan.checkpoint_every == 0:
            self._save()

    def _evaluate(self) -> dict[str, float]:
        with self.optimizer.averaged():
            sheet = self.latest = self.evaluator.sheet()
            row = self.evaluator.compare(sheet)
            if (
                self.schedule.keep_best
                and self.run.reward.rewards
                and (self.best is None or self.evaluator.better(sheet.scores, self.best[0]))
            ):
                self.best = (dict(sheet.scores), self.run.round)
                self._on_main(lambda: self._keep("lora-best"))
        self._show(f"round-{self.run.round:04d}", sheet)
        return row

    def _apply_limits(self, row: dict[str, Any]) -> None:
        """Stop, or halve the learning rate, when KL or a held-out reward crosses its limit."""
        reason, plan = None, self.schedule
        if plan.max_kl is not None and row["kl"] > plan.max_kl:
            reason = f"KL to the reference {row['kl']:.3g} nats is above max_kl = {plan.max_kl}"
        for label in (
            "total",
            *self.evaluator.rewards,
        ):  # a reward of a whole set has no gain, and so no limit
            drop = -row.get(f"heldout/{label}/gain_sd", 0.0)
            if plan.max_heldout_drop is not None and drop > plan.max_heldout_drop:
                limit = f"max_heldout_drop = {plan.max_heldout_drop}"
                reason = f"held-out {label} fell by {drop:.2f} sd, more than {limit}"
        if plan.minutes is not None and self._anywhere(self.seconds > 60 * plan.minutes):
            self.stopped = f"minutes = {plan.minutes} are over"
        elif reason and plan.on_limit == "stop":
            self.stopped = reason
        elif reason:
            self.optimizer.scale_lr(0.5)
            row["lowered_lr"] = reason

    def _finish(self) -> dict[str, Any]:
        with self.optimizer.averaged():
            sheet = self.latest or self.evaluator.sheet()
            self._show("final", sheet)
            self._on_main(lambda: self._keep("lora"))
        summary = self.evaluator.summary(sheet) | {
            "denoiser_calls": self._total(self.run.policy.denoiser_calls),
            "reward_calls": self._total(self.run.reward_calls),
            "seconds": round(self.seconds, 1),
            "rounds": self.run.round,
            "stopped": self.stopped,
            "best_round": self.best[1] if self.best else None,
        }
        self._on_main(lambda: self.folder.write_summary(summary))
        return summary

    def _keep(self, name: str) -> None:
        with appearing(self.folder.path / name) as part:
            self.run.policy.save(part)

    def _total(self, count: int) -> int:
        """A count of this process, summed over all."""
        return int(self.run.gather(torch.tensor([count])).sum())

    def _anywhere(self, flag: bool) -> bool:
        """Whether it holds on any process, so that all of them go the same way."""
        return self._total(flag) > 0

    def _show(self, tag: str, sheet: Sheet) -> None:
        self._on_main(lambda: self.folder.save_samples(tag, sheet.images, list(self.evaluator.prompts)))

    def _on_main(self, action: Callable[[], object]) -> None:
        """Do it on the main process while the others wait."""
        if self.run.accelerator.is_main_process:
            action()
        self.run.accelerator.wait_for_everyone()

    # -- checkpoints --------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        saved: dict[str, Any] = getattr(self.algorithm, "state_dict", dict)()
        return {
            "identity": self.identity,
            "round": self.run.round,
            "policy": self.run.policy.adapter_state(),
            "optimizer": self.optimizer.state_dict(),
            "algorithm": saved,
            "combiner": self.run.reward.combiner.state_dict(),
            "seconds": self.seconds,
            "calls": [self.run.policy.denoiser_calls, self.run.reward_calls],
            "best": self.best,
            "pending": self.pending,
        }

    def _save(self) -> None:
        self._on_main(self._write)

    def _write(self) -> None:
        path = self.folder.checkpoints / f"round-{self.run.round:04d}"
        checkpoint.save(path, self._state(), keep=self.schedule.keep_checkpoints)

    @contextmanager
    def _rescuing(self, pending: dict[str, Any] | None = None) -> Iterator[None]:
        """Save what a failing reward or Ctrl-C would cost: the rounds before, or the row whose evaluation is `pending`.

        What fails while a round is collected has changed nothing yet. Processes do not wait for each
        other, as only some of them may have failed.
        """
        try:
            yield
        except (RunError, KeyboardInterrupt):
            self.pending = pending
            if self.run.accelerator.is_main_process and self.run.round:
                self._write()
            raise

    def _resume(self) -> None:
        state = checkpoint.load(checkpoint.latest(self.folder.checkpoints))
        require_same(state["identity"], self.identity, self.folder.path)
        self.pending = state["pending"]
        self.run.round, self.seconds = state["round"] - bool(self.pending), state["seconds"]
        self.run.policy.load_adapter_state(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["algorithm"]:
            self.algorithm.load_state_dict(state["algorithm"])  # type: ignore[attr-defined]
        self.run.reward.combiner.load_state_dict(state["combiner"])
        self.run.policy.denoiser_calls, self.run.reward_calls = state["calls"]
        self.best = state["best"]
        self._on_main(lambda: self.folder.cut(self.run.round))


def require_same(then: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Refuse to go on with a run of another config, naming what differs."""
    keys = sorted(k for k in then.keys() | now.keys() if then.get(k) != now.get(k))
    if keys:
        changes = "; ".join(f"{k}: {then.get(k)!r} then, {now.get(k)!r} now" for k in keys)
        raise DiffalignError(
            f"the run in {where} is of another config ({changes}). "
            "Resume with the config it was made with, or start a new run."
        )


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C only sets a flag, so that the round is finished and saved; the second one stops."""
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def handle(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)
        logger.warning("finishing this round and saving it; press Ctrl-C again to stop at once.")

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)
