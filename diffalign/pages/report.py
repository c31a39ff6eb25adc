"""The report of a run: one self-contained page with a verdict, pictures before and after, and curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.folders.runfolder import RunFolder
from diffalign.pages import page
from diffalign.pages.charts import charts

SHOWN = 64
"""At most so many pairs: the page stays small."""

DIVERSITY_LOSS = 0.1
"""The share of its diversity that a run may lose before the report warns."""


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict; tone is good, bad or flat."""

    tone: str
    text: str


@dataclass(frozen=True)
class Pair:
    """A held-out prompt with its pictures as data URIs."""

    prompt: str
    before: str
    after: str


def write(folder: RunFolder) -> Path:
    """report.html of a run, ended or not."""
    rows, summary = folder.rows(), folder.summary()
    pairs = list(_pairs(folder))
    return page.write(
        folder,
        "report.html",
        summary=summary,
        rounds=len(rows),
        verdict=verdict(summary),
        pairs=pairs[:SHOWN],
        pair_count=len(pairs),
        charts=charts(rows),
    )


def verdict(summary: Mapping[str, Any]) -> list[Finding]:
    """What rose and what fell on held-out prompts, in plain words; a change is one whose interval excludes 0."""
    if not summary:
        return [Finding("flat", "The run has not ended, so there is no final evaluation yet.")]
    trained = (
        [_change("The trained reward", summary["gain_sd"], summary["gain_sd_ci"])]
        if "gain_sd" in summary
        else []
    )
    others = [
        _change(f"The reward “{label}”, which was not trained on,", other["gain_sd"], other["gain_sd_ci"])
        for label, other in summary["heldout_other"].items()
    ]
    costs = [*others, *_diversity(**summary["diversity"])]
    found = [*trained, *_parts(summary.get("heldout_parts", {})), *costs]
    if any(finding.tone == "good" for finding in trained) and any(finding.tone == "bad" for finding in costs):
        found.append(
            Finding(
                "bad",
                "One number went up while another went down: this is what reward hacking looks like. Compare the "
                "pictures before you use this model; fewer rounds, a lower lr or a second reward may help.",
            )
        )
    if reason := summary["stopped"]:
        found.append(Finding("flat", f"Training stopped early: {reason}."))
    return found


def _parts(parts: Mapping[str, Any]) -> list[Finding]:
    """What became of each trained reward, where there are several."""
    if len(parts) < 2:
        return []
    return [_change(f"Its part “{k}”", part["gain_sd"], part["gain_sd_ci"]) for k, part in parts.items()]


def _change(what: str, gain: float | None, interval: tuple[float, float] | None) -> Finding:
    if gain is None or interval is None or None in interval:
        return Finding("flat", f"{what} was not measured.")
    low, high = interval
    amount = f"{abs(gain):.2f} standard deviations (95 % interval {low:+.2f} to {high:+.2f})"
    if low > 0:
        return Finding("good", f"{what} rose by {amount}.")
    if high < 0:
        return Finding("bad", f"{what} fell by {amount}.")
    return Finding("flat", f"{what} did not change measurably: {gain:+.2f} ({low:+.2f} to {high:+.2f}).")


def _diversity(base: float | None, trained: float | None) -> Iterator[Finding]:
    if base and trained is not None:
        change = trained / base - 1
        percent = round(100 * change)
        word = f"{'fell' if percent < 0 else 'rose'} by {abs(percent)} %" if percent else "did not change"
        tone = "bad" if change < -DIVERSITY_LOSS else "flat"
        yield Finding(tone, f"The diversity of the pictures {word}.")


def _pairs(folder: RunFolder) -> Iterator[Pair]:
    for index, prompt in enumerate(folder.prompts()):
        before, after = (folder.samples / f"{index:03d}-{tag}.png" for tag in ("base", "final"))
        if before.exists() and after.exists():
            yield Pair(prompt, page.data_uri(before), page.data_uri(after))
