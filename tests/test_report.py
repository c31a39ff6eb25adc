"""The report says what rose and what fell, and needs nothing but itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
import torch

from diffalign.folders.runfolder import RunFolder
from diffalign.pages import report
from diffalign.pages.charts import Chart, Line, charts, draw
from diffalign.settings import config

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


PARTS = {
    "style": {"base": 0.1, "trained": 0.4, "gain_sd": 1.0, "gain_sd_ci": [0.8, 1.2]},
    "plain": {"base": -3.0, "trained": -4.0, "gain_sd": -0.4, "gain_sd_ci": [-0.6, -0.2]},
}


def test_every_trained_part_is_named_and_a_trade_between_parts_is_no_hacking():
    found = report.verdict(SUMMARY | {"heldout_parts": PARTS})
    assert [f.tone for f in found] == ["good", "good", "bad", "flat", "flat"]
    assert found[2].text.startswith("Its part “plain” fell by 0.40")
    assert not any("hacking" in f.text for f in found)
    assert len(report.verdict(SUMMARY | {"heldout_parts": {"style": PARTS["style"]}})) == len(tones())


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


def composed_rows() -> list[dict]:
    rows = []
    for number in range(4):
        row = {"round": number, "reward/total/mean": 0.1 * number, "multiplier/style >= 0.25": 0.2 * number}
        row |= {f"reward/{label}/mean": 0.1 for label in ("style", "plain")}
        row |= {f"heldout/{label}/gain_sd": 0.1 * number for label in ("total", "style", "plain", "match")}
        row |= {f"heldout/gain_sd{end}": 0.1 * number for end in ("", "_low", "_high")}
        rows.append(row | {"heldout/vendi/set": 3.0 + number, "heldout/vendi/set_base": 3.0})
    return rows


def test_the_curves_show_the_total_its_parts_what_only_judges_and_the_multipliers():
    found = {chart.title: (chart, svg) for chart, svg in charts(composed_rows())}
    gains, svg = found["Held-out gain"]
    names = ["trained reward", "style, trained on", "plain, trained on", "match, held out"]
    assert [line.name for line in gains.lines] == names
    assert all(f">{name}</text>" in svg for name in names)
    assert [f"var(--series-{k})" in svg for k in (1, 2, 3, 4, 5)] == [True, True, True, True, False]
    assert [line.name for line in found["Multipliers"][0].lines] == ["style >= 0.25"]
    assert [line.name for line in found["vendi"][0].lines] == ["trained", "base"]


def test_one_trained_reward_has_one_curve():
    rows = [
        {k: v for k, v in row.items() if ("plain" not in k and "/" in k) or k == "round"}
        for row in composed_rows()
    ]
    lines = next(chart.lines for chart, _ in charts(rows) if chart.title == "Held-out gain")
    assert [line.name for line in lines] == ["trained reward", "match, held out"]


def test_more_curves_than_colours_are_all_drawn():
    lines = [Line(f"k{n}", f"line {n}") for n in range(11)]
    svg = draw(Chart("Many", "", lines), [{"round": r} | {line.key: r for line in lines} for r in range(2)])
    assert all(f">line {n}</text>" in svg for n in range(11))


def test_the_table_names_parts_judges_and_sets(folder):
    folder.write_summary(
        SUMMARY | {"heldout_parts": PARTS, "heldout_sets": {"vendi": {"base": 3.0, "trained": 2.5}}}
    )
    text = report.write(folder).read_text(encoding="utf-8")
    for name in (
        "style, trained on",
        "plain, trained on",
        "match, held out",
        "vendi, of all pictures together",
    ):
        assert f"<td>{name}</td>" in text
    assert Page(text).open == []


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
