"""What ReNO costs over the bare generator, VAE and reward: time of an iteration as paired ratios, throughput, memory.

"Bare" is one call of the same U-Net, the formula of the clean sample, the same VAE's decoder and the same reward
in a row, forward and backward to the noise, on the tensors of the iteration, in the same process; that both have
the same gradient is checked first. Pairs alternate; medians and quartiles of their ratios are printed. Memory is the
growth of the resident peak (on CUDA: of the allocated one) in a process of its own.

    python benchmarks/reno.py [--model emoji-turbo] [--pairs 15]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from overhead import seconds
from torch import Tensor, nn

from diffalign.metrics import peak_memory_mb
from diffalign.policy import Policy
from diffalign.rewarding.compose import composed
from diffalign.search import Task
from diffalign.search.reno import Ascent, ReNO
from diffalign_rewards.emoji_clip import EmojiClip

PROMPTS = [f"{name}, {style}" for name in ("red apple", "cat face", "blue heart", "dog face", "sun", "green book",
           "ghost", "tulip") for style in ("3d", "flat")]  # fmt: skip


class Work:
    """ReNO's iterations for some prompts at once, and the bare computation of the same."""

    def __init__(self, model: str, count: int, checkpoint: bool = False) -> None:
        self.policy = Policy.from_pretrained(model, steps=1, guidance_scale=1.0, lora=False)
        self.method, self.reward = ReNO(checkpoint=checkpoint), EmojiClip()
        prompts = PROMPTS[:count]
        self.task = Task(
            self.policy, composed(self.reward), prompts, self.method.default_rule(self.policy), batch=count
        )
        zero = torch.zeros(count, dtype=torch.long)
        seeds, z = (
            self.task.seeds("steps", self.task.everyone, zero),
            self.task.noise(self.task.everyone, zero),
        )
        self.ascents = [Ascent(k, z[k], seeds[k], self.method) for k in range(count)]
        self.calls: list[tuple[Any, Any]] = []
        hook = self.policy.denoiser.register_forward_hook(
            lambda module, args, kwargs, out: self.calls.append((args, kwargs)), with_kwargs=True
        )
        self.method._evaluate(self.task, self.ascents)
        hook.remove()

    def iteration(self) -> None:
        """As in `ReNO._ascend`."""
        self.method._evaluate(self.task, self.ascents)
        self.method._step(self.task, self.ascents, 1)

    def bare(self) -> Tensor:
        """The gradient (B, ...) of minus the reward by the modules themselves."""
        (args, kwargs), grid = self.calls[0], self.policy.grid
        vae = self.policy.shell.modules()["vae"]
        z = torch.stack([ascent.z.detach() for ascent in self.ascents]).requires_grad_()
        output = self.policy.denoiser(z, *args[1:], **kwargs)
        output = output[0] if isinstance(output, tuple) else output.sample
        x0, _ = grid.x0_eps(output, z, torch.zeros(len(z), dtype=torch.long))
        pictures = (vae.decode(x0 / vae.config.scaling_factor, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)
        return torch.autograd.grad(-self.reward(pictures, self.task.prompts).sum(), z)[0]

    def check(self) -> None:
        """Stop where the two sides do not compute the same."""
        self.method.reg_weight = 0.0
        self.method._evaluate(self.task, self.ascents)
        total = torch.stack([ascent.loss for ascent in self.ascents]).sum()
        ours = torch.stack(torch.autograd.grad(total, [ascent.z for ascent in self.ascents]))
        error = float((ours - self.bare()).norm() / ours.norm())
        if error > 1e-3:
            raise SystemExit(f"the two gradients differ by {error:.1e}; their times could not be compared.")
        self.method.reg_weight = ReNO().reg_weight


@contextmanager
def counted(module: nn.Module, method: str) -> Iterator[list[int]]:
    """Calls of a module's method within the context."""
    original, calls = getattr(module, method), []

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    setattr(module, method, count)
    yield calls
    setattr(module, method, original)


def ratio(work: Work, pairs: int) -> None:
    """Print the quartiles of the ratios of an iteration to the bare computation."""
    work.check()
    work.iteration(), work.bare()
    timed = [(seconds(work.iteration), seconds(work.bare)) for _ in range(pairs)]
    low, median, high = (
        torch.tensor([a / b for a, b in timed]).quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    )
    ours, base = (sorted(times)[pairs // 2] for times in zip(*timed, strict=True))
    print(
        f"{len(work.ascents):2} prompts: {median:.3f}x bare (quartiles {low:.3f} to {high:.3f}, {pairs} pairs, bare "
        f"{base:.3f} s), {len(work.ascents) / ours:.2f} prompts x iterations a second",
        flush=True,
    )


def texts(model: str, iterations: int = 5) -> None:
    """Print how often texts are read in a whole search of 4 prompts."""
    work = Work(model, 4)
    work.reward.tower.remembered.clear()
    work.policy.encoder.known.clear()
    clip, encoder = work.reward.tower.model, work.policy.shell.modules()["text_encoder"]
    with counted(clip, "encode_text") as reward, counted(encoder, "forward") as generator:
        ReNO(iterations=iterations)(work.policy, PROMPTS[:4], work.reward)
    print(f"{iterations} iterations of 4 prompts: the reward reads texts {len(reward)} time(s), the generator "
          f"{len(generator)} time(s)", flush=True)  # fmt: skip


def memory(model: str, count: int, checkpoint: bool) -> float:
    """MB that a search needs beyond the loaded models."""
    work = Work(model, 1, checkpoint)
    with torch.no_grad():
        work.policy.decode(work.policy.noise([0]))
    before = peak_memory_mb()
    ReNO(iterations=3, checkpoint=checkpoint)(work.policy, PROMPTS[:count], work.reward)
    return peak_memory_mb() - before


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="emoji-turbo")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--case", nargs=2)
    args = parser.parse_args()
    if args.case:
        print(memory(args.model, int(args.case[0]), args.case[1] == "True"))
        return
    for checkpoint in (False, True):  # first: a child's peak begins at its parent's
        command = [sys.executable, __file__, "--model", args.model, "--case", "16", str(checkpoint)]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(f"16 prompts, checkpoint={checkpoint}: {float(found.split()[-1]):.0f} MB beyond the models")
    for count in (1, 4, 16):
        ratio(Work(args.model, count), args.pairs)
    texts(args.model)


if __name__ == "__main__":
    main()
