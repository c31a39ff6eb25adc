"""The report says what rose and what fell, and needs nothing but itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch

from diffalign import config, report
from diffalign.charts import Chart, Line, draw
from diffalign.runfolder import RunFolder

SUMMARY = {
    "heldout_reward_base": -0.3, "heldout_reward": 0.4, "gain_sd": 0.9, "gain_sd_ci": [0.7, 1.1],
    "win_rate": 0.9, "win_rate_ci": [0.8, 0.95],
    "heldout_other": {"match": {"base": 0.6, "trained": 0.6, "gain_sd": 0.0, "gain_sd_ci": [-0.1, 0.1]}},
    "diversity": {"base": 0.6, "trained": 0.59}, "denoiser_calls": 51200, "reward_calls": 900,
    "seconds": 200.0, "rounds": 4, "stopped": None, "best_round": 4,
}  # fmt: skip
FALLEN = {"match": {"base": 0.6, "trained": 0.4, "gain_sd": -0.5, "gain_sd_ci": [-0.7, -0.3]}}


@pytest.fixture
def folder(tmp_path):
    made = RunFolder.create(tmp_path / "my <run>", config.load("sd15-d3po").resolved())
    for number in range(4):
        row = {"round": number, "kl": float(number), "reward/total/mean": 0.1 * number}
        made.log(row | {f"reward/total/{q}": 0.1 * number for q in ("q10", "q90")})
    return made


def tones(**changes: object) -> list[str]:
    return [finding.tone for finding in report.verdict(SUMMARY | changes)]


def test_a_clean_gain_has_no_warning():
    assert tones() == ["good", "flat", "flat"]


@pytest.mark.parametrize(
    "change",
    [{"heldout_other": FALLEN}, {"diversity": {"base": 0.6, "trained": 0.5}}],
    ids=["reward", "diversity"],
)
def test_a_gain_that_costs_something_else_is_called_reward_hacking(change):
    findings = report.verdict(SUMMARY | change)
    assert "reward hacking" in findings[-1].text
    assert sum(f.tone == "bad" for f in findings) == 2


def test_a_gain_within_its_interval_is_no_gain():
    assert tones(gain_sd_ci=[-0.1, 0.4])[0] == "flat"
    assert tones(gain_sd=-0.9, gain_sd_ci=[-1.1, -0.7])[0] == "bad"


class Page(HTMLParser):
    """Collects what a page refers to, and checks that its tags close in order."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_self_contained(folder):
    prompts = [f"prompt {k} <b>" for k in range(3)]
    folder.save_samples("base", torch.rand(3, 3, 16, 16), prompts)
    folder.save_samples("final", torch.rand(3, 3, 16, 16), prompts)
    folder.write_summary(SUMMARY)
    text = report.write(folder).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert sum(source.startswith("data:image/webp") for source in page.sources) == 6
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert "prompt 2 &lt;b&gt;" in text
    assert "<b>" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL).replace(
        '<b aria-hidden="true">', ""
    )
    assert text.count("<svg ") == 2
    assert "#010203" not in text
    assert "var(--series-1)" in text


def test_every_curve_shows_and_looks_like_no_other():
    lines = [Line(f"r{k}", f"reward {k}") for k in range(16)]
    rows = [{"round": n, **{line.key: 1.0 * n for line in lines}} for n in range(3)]
    svg = draw(Chart("t", "n", lines), rows)
    assert [f"reward {k}<" in svg for k in range(16)] == [True] * 16
    assert len(set(re.findall(r'style="(fill: none[^"]*stroke-width: 2\b[^"]*)"', svg))) == 16
    assert "reward 16<" in draw(Chart("t", "n", [*lines, Line("r0", "reward 16")]), rows)


def test_a_run_that_has_not_ended_has_a_report_too(folder):
    text = report.write(folder).read_text(encoding="utf-8")
    assert "has not ended" in text
    assert Page(text).open == []


def test_missing_numbers_are_left_out(folder):
    folder.write_summary(SUMMARY | {"diversity": {"base": None, "trained": None}, "best_round": None})
    assert "–" in report.write(folder).read_text(encoding="utf-8")
