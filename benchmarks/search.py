"""Reward against compute for every search, on the packaged models: pictures and table of docs/results.md.

The reward that is searched for is emoji_clip's style score ("is it 3d?") on the held-out prompts; the one that
only judges is its match with the prompt. Gains are in standard deviations of the searched model's first samples.

    python benchmarks/search.py [--out searches/benchmark] [--seeds 0 1 2] [--prompts 64] [--tuned RUN/lora]

Interrupt it and call it again: what is finished is kept. Without --tuned (the LoRA of an emoji-d3po run), RL
guidance is left out.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from tables import DOCS, interval, table, write
from torch import Tensor

from diffalign import prompts
from diffalign.policy import LoraSpec, Policy
from diffalign.registry import reward
from diffalign.search import Found, Search
from diffalign.search.best_of_n import BestOfN
from diffalign.search.dts import DTS
from diffalign.search.fk import FK
from diffalign.search.nrg import NRG
from diffalign.search.reno import ReNO
from diffalign.search.rl_guidance import RLGuidance
from diffalign.search.zo_rank_sgd import ZORankSGD
from diffalign.training.evaluate import bootstrap, pairwise_distance

ONE, MANY = "one step", "ten steps"
BUDGETS = {ONE: [1, 2, 4, 8, 16, 25, 50], MANY: [10, 20, 40, 80, 160, 320]}
LOOKS: dict[str, Any] = {"lam": 50.0, "start": 0.3, "end": 0.6, "every": 0.1}
TREE: dict[str, Any] = {
    "lam": 100.0,
    "c_uct": 0.04,
    "branches": (0.2, 0.3, 0.4, 0.5),
    "branching": 1.0,
    "growth": 0.5,
}
"""For rewards whose standard deviation among pictures of one prompt is about 0.04; ten steps."""
NAMES = [
    "model", "method", "denoiser calls", "scored pictures", "gradients", "gain (sd)",
    "beyond best of n at equal calls (sd)", "prompt match, only judged (sd)", "diversity",
]  # fmt: skip
MARKERS = "osD^vPX*"
COLORS = ("#222222", "#c0392b", "#2471a3", "#1e8449", "#b9770e", "#7d3c98", "#117a65", "#e67e22")


@dataclass(frozen=True)
class Entry:
    """One search: which model it runs on, the curve it belongs to, the point of that curve, how it is made."""

    panel: str
    curve: str
    point: str
    method: Callable[[], Search]

    @property
    def key(self) -> str:
        """What its results are filed under."""
        return f"{self.panel}-{self.curve}-{self.point}".replace(" ", "_")


def entries(tuned: bool) -> Iterator[Entry]:
    """Every search of the benchmark; best-of-N first, whose first samples are everybody's reference."""
    yield Entry(ONE, "best of n", "50", lambda: BestOfN(50))
    yield Entry(ONE, "ReNO", "50", lambda: ReNO(50))
    yield Entry(ONE, "ReNO lr=1", "50", lambda: ReNO(50, lr=1.0))
    yield Entry(ONE, "ranking (ZO)", "7", lambda: ZORankSGD(rounds=4, queries=7, top=3))
    yield Entry(MANY, "best of n", "32", lambda: BestOfN(32))
    yield Entry(MANY, "DTS*", "32", lambda: DTS(rollouts=32, mode="search", **TREE))
    yield Entry(MANY, "DTS", "32", lambda: DTS(rollouts=32, mode="sample", **TREE))
    for k in (4, 16):
        yield Entry(MANY, "FK diff", str(k), lambda k=k: FK(particles=k, **LOOKS))
        yield Entry(MANY, "FK max", str(k), lambda k=k: FK(particles=k, potential="max", **LOOKS))
    guide = reward("emoji_noisy_clip", score="style")
    yield Entry(MANY, "NRG w=20", "16", lambda: NRG(guide, 20.0, method=BestOfN(16)))
    yield Entry(MANY, "ranking (ZO)", "7", lambda: ZORankSGD(rounds=3, queries=7, top=3))
    if tuned:
        yield Entry(MANY, "RL guidance w=2", "16", lambda: RLGuidance(2.0, method=BestOfN(16)))


def policy(panel: str, tuned: Path | None) -> Policy:
    """The model of a panel, with a trained adapter if there is one to mix in."""
    if panel == ONE:
        return Policy.from_pretrained("emoji-turbo", steps=1, lora=False)
    lora = LoraSpec(rank=16, targets="attention+conv") if tuned else False
    made = Policy.from_pretrained("emoji", steps=10, guidance_scale=3.0, lora=lora)
    if tuned:
        made.load(tuned)
    return made


def run(entry: Entry, seed: int, model: Policy, heldout: list[str], folder: Path) -> None:
    """Search, and keep what was found, unless that was done before."""
    path = folder / f"{entry.key}-{seed}.safetensors"
    if path.exists():
        return
    found = entry.method()(model, heldout, reward("emoji_clip", score="style"), seed=seed, batch=64)
    tensors, numbers = kept(entry, found, model)
    path.with_suffix(".json").write_text(json.dumps(numbers))
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    print(f"{path.stem}: {float(tensors['total'].mean()):.4f}, {numbers}", flush=True)


@torch.no_grad()
def kept(entry: Entry, found: Found, model: Policy) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What is kept of a search: tensors by prompt, and numbers."""
    judge = reward("emoji_clip", score="match")
    images, before = model.decode(found.latents), model.decode(found.first_latents)
    tensors = {f"best/{budget}": best(found, budget) for budget in BUDGETS[entry.panel]}
    tensors |= {"total": found.total, "first": found.first_scores["total"], "images": images}
    tensors |= {"match": judge(images, found.prompts), "first match": judge(before, found.prompts)}
    kinds = ("denoiser_calls", "reward_calls", "gradients", "lost")
    cost = {kind: sum(getattr(c, kind) for c in found.costs) / len(found) for kind in kinds}
    return tensors, {"diversity": pairwise_distance(judge.embed(images)), **cost}


def best(found: Found, budget: int) -> Tensor:
    """The best total (P,) of every prompt when it had cost at most `budget` denoiser calls; nan before the first."""
    marks = [[m.best for m in path if m.cost.denoiser_calls <= budget] for path in found.paths]
    return torch.tensor([some[-1] if some else float("nan") for some in marks])


class Results:
    """Everything that was kept, averaged over seeds, in standard deviations of the panel's first samples."""

    def __init__(self, folder: Path, chosen: Sequence[Entry], seeds: Sequence[int]) -> None:
        self.entries, self.folder, self.seeds = list(chosen), folder, seeds
        self.reference = {e.panel: e for e in reversed(self.entries) if e.curve == "best of n"}

    def gain(self, entry: Entry, name: str) -> Tensor:
        """(P,) mean over seeds of a tensor beyond the reference's first samples, in their deviations."""
        base = "first match" if name == "match" else "first"
        each = []
        for seed in self.seeds:
            first = self._tensors(self.reference[entry.panel], seed)[base]
            each.append((self._tensors(entry, seed)[name] - first) / first.std(correction=0))
        return torch.stack(each).mean(0)

    def number(self, entry: Entry, name: str) -> float:
        """The mean over seeds of a number."""
        paths = [self.folder / f"{entry.key}-{seed}.json" for seed in self.seeds]
        return sum(json.loads(path.read_text())[name] for path in paths) / len(paths)

    def points(self, panel: str, curve: str) -> list[tuple[float, float]]:
        """(denoiser calls, gain) of a curve: along the path of a single search, or of several searches."""
        own = [e for e in self.entries if (e.panel, e.curve) == (panel, curve)]
        if len(own) > 1:
            return [(self.number(e, "denoiser_calls"), float(self.gain(e, "total").mean())) for e in own]
        spent = self.number(own[0], "denoiser_calls")
        along = [(b, float(self.gain(own[0], f"best/{b}").mean())) for b in BUDGETS[panel] if b < spent]
        last = (spent, float(self.gain(own[0], "total").mean()))
        return [(b, gain) for b, gain in [*along, last] if not math.isnan(gain)]

    def beside_best_of_n(self, entry: Entry) -> Tensor:
        """(P,) the gain beyond best-of-n's, which gets as many denoiser calls or a few more.

        Where a method took more than best-of-n's largest budget, both stand as they were at that budget.
        """
        spent, most = self.number(entry, "denoiser_calls"), max(BUDGETS[entry.panel])
        budget = min((b for b in BUDGETS[entry.panel] if b >= spent), default=most)
        own = "total" if spent <= most else f"best/{budget}"
        return self.gain(entry, own) - self.gain(self.reference[entry.panel], f"best/{budget}")

    def _tensors(self, entry: Entry, seed: int) -> dict[str, Tensor]:
        return load_file(self.folder / f"{entry.key}-{seed}.safetensors")


def draw(results: Results, path: Path) -> None:
    """All curves in one picture, a panel for each model."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, panel in zip(figure.subplots(1, 2, sharey=True), (ONE, MANY), strict=True):
        curves = dict.fromkeys(e.curve for e in results.entries if e.panel == panel)
        for number, curve in enumerate(curves):
            x, y = zip(*results.points(panel, curve), strict=True)
            style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
            axes.plot(
                x, y, label=curve, markersize=4, linewidth=2.4 if curve == "best of n" else 1.4, **style
            )
        axes.set_xscale("log", base=2)
        axes.set_title(f"{'emoji-turbo' if panel == ONE else 'emoji'}, {panel}", loc="left", fontsize=10)
        axes.set_xlabel("denoiser calls a prompt")
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.axes[0].set_ylabel("gain of the searched reward (sd)")
    figure.savefig(path, dpi=140)


def rows(results: Results) -> Iterator[list[str]]:
    """A line of the table for the largest search of every curve."""
    largest = {(e.panel, e.curve): e for e in results.entries}
    for e in largest.values():
        gain, beside, match = results.gain(e, "total"), results.beside_best_of_n(e), results.gain(e, "match")
        yield [
            e.panel, e.curve,
            *(f"{results.number(e, kind):.0f}" for kind in ("denoiser_calls", "reward_calls", "gradients")),
            *map(spread, (gain, beside, match)),
            f"{results.number(e, 'diversity'):.3f}",
        ]  # fmt: skip


def spread(each: Tensor) -> str:
    """The mean of values (P,) with its interval."""
    return interval(float(each.mean()), bootstrap(each))


def contact(results: Results, path: Path, count: int = 10) -> None:
    """Pictures of some prompts (every sixth, so that nobody picked them), a row for each method."""
    largest = {(e.panel, e.curve): e for e in results.entries}
    shown = list(largest.values())
    sheet = [load_file(results.folder / f"{e.key}-{results.seeds[0]}.safetensors")["images"] for e in shown]
    figure = Figure(figsize=(count, len(shown)), layout="constrained")
    for axes, (row, column) in zip(
        figure.subplots(len(shown), count).flat,
        ((r, c) for r in range(len(shown)) for c in range(count)),
        strict=True,
    ):
        axes.imshow(sheet[row][(6 * column) % len(sheet[row])].permute(1, 2, 0).clamp(0, 1).numpy())
        axes.set_xticks([]), axes.set_yticks([])
        if column == 0:
            axes.set_ylabel(f"{shown[row].curve}\n({shown[row].panel})", fontsize=6)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run what is missing, then write the table and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("searches/benchmark"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tuned", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    heldout, chosen = prompts.load("emoji-heldout")[: args.prompts], list(entries(args.tuned is not None))
    models: dict[Any, Policy] = {}
    for seed in args.seeds:
        for entry in chosen:
            tuned = args.tuned if entry.curve.startswith("RL guidance") else None
            key = entry.panel, tuned
            models[key] = models.get(key) or policy(*key)
            run(entry, seed, models[key], heldout, args.out)
    results = Results(args.out, chosen, args.seeds)
    draw(results, DOCS / "img" / "search.png")
    contact(results, DOCS / "img" / "search-pictures.png")
    write("searches", table(NAMES, rows(results)))


if __name__ == "__main__":
    main()
