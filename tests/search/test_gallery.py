"""The gallery shows what was found and how, trees too, and needs nothing but itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from diffalign.folders.searchfolder import SearchFolder
from diffalign.pages import drawing, gallery, outcome
from diffalign.settings.searchconfig import validate
from tests.test_report import Page

NODES = [
    {"parent": -1, "depth": 0, "value": 0.6, "visits": 3},
    {"parent": 0, "depth": 1, "value": 0.2, "visits": 1},
    {"parent": 1, "depth": 2, "value": 0.2, "visits": 1},
    {"parent": 0, "depth": 1, "value": 0.8, "visits": 2},
    {"parent": 3, "depth": 2, "value": 0.9, "visits": 1},
    {"parent": 3, "depth": 2, "value": None, "visits": 1},
]
CONFIG = {
    "model": "emoji", "steps": 2, "rewards": "emoji_clip", "search": {"name": "best_of_n"}, "prompts": ["a"],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> SearchFolder:
    return SearchFolder.create(tmp_path / "my <search>", validate(CONFIG).resolved())


def keep(folder: SearchFolder, number: int, **changes: Any) -> None:
    scores = {"first": {"total": 0.25, "look": 0.25}, "best": {"total": 0.5 + number, "look": 0.5 + number}}
    pictures = {tag: torch.rand(3, 8, 8) for tag in scores}
    cost = {"denoiser_calls": 4, "reward_calls": 2, "gradients": 0, "lost": 0}
    path = [{**cost, "denoiser_calls": 2, "best": 0.25}, {**cost, "best": 0.5 + number}]
    row = {
        "prompt": f"prompt {number} <b>", "scores": scores, "cost": cost, "seconds": 2.0, "path": path, "extras": {},
        "eval_rewards": {},
    }  # fmt: skip
    folder.write(number, row | changes, pictures, {}, noise=torch.zeros(1))


def page(folder: SearchFolder, prompts: int = 2) -> str:
    outcome.conclude(folder, {}, prompts)
    return gallery.write(folder).read_text(encoding="utf-8")


def test_the_page_is_whole_and_self_contained(folder):
    keep(folder, 0, extras={"nodes": NODES})
    keep(folder, 1)
    text = page(folder)
    parsed = Page(text)
    assert parsed.open == []
    assert sum(source.startswith("data:image/webp") for source in parsed.sources) == 4
    assert all(source.startswith(("data:", "#")) for source in parsed.sources)
    assert "prompt 1 &lt;b&gt;" in text
    assert "my &lt;search&gt;" in text
    assert [text.count(f'<svg class="{kind}"') for kind in ("spark", "tree")] == [2, 1]
    assert "rose from 0.25 to 1 (+0.75)" in text
    assert text.count("denoiser calls") >= 4


def test_a_search_that_has_not_ended_has_a_gallery_too(folder):
    assert "No prompt is finished yet" in page(folder)
    keep(folder, 0)
    assert "1 of 2 prompts are finished" in page(folder)


def test_what_only_judges_and_fell_is_a_warning(folder):
    for number in range(3):
        scores = {"first": {"total": 0.0, "match": 0.5}, "best": {"total": 1.0, "match": 0.25}}
        keep(folder, number, scores=scores, eval_rewards={"match": {}})
    outcome.conclude(folder, {}, 3)
    found = list(gallery.verdict(folder.summary()))
    assert [finding.tone for finding in found] == ["good", "bad", "bad"]
    assert "“match”, which only judges, fell from 0.5 to 0.25" in found[1].text


def test_lost_samples_are_told(folder):
    keep(folder, 0, cost={"denoiser_calls": 4, "reward_calls": 2, "gradients": 0, "lost": 7})
    assert "7 scores were not finite" in page(folder)


def circles(svg: str) -> list[tuple[float, float, float, str]]:
    """(x, y, radius, share) of every node that is drawn."""
    found = re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)" style="--share: (\d+)%', svg)
    return [(float(x), float(y), float(r), share) for x, y, r, share in found]


def test_a_tree_is_drawn_from_the_top_down_with_parents_over_their_children():
    svg = drawing.tree(NODES)
    found = dict(enumerate(circles(svg), start=1))
    x, y = {n: c[0] for n, c in found.items()}, {n: c[1] for n, c in found.items()}
    assert y[1] == y[3] < y[2] == y[4] == y[5]
    assert x[3] == pytest.approx((x[4] + x[5]) / 2, abs=0.06)
    assert len({x[n] for n in (2, 4, 5)}) == 3
    assert found[3][2] > found[1][2], "more visits, larger"
    assert (found[4][3], found[2][3], found[5][3]) == ("100", "0", "0")
    assert svg.count('class="way"') == 2
    assert "no finite reward" in svg


def test_of_a_large_tree_the_best_leaves_are_drawn():
    many = [NODES[0]] + [{"parent": 0, "depth": 1, "value": float(k), "visits": 1} for k in range(500)]
    svg = drawing.tree(many)
    assert len(circles(svg)) == drawing.LEAVES
    assert "value 499," in svg
    assert "value 299," not in svg


def test_a_deep_tree_needs_no_deep_stack():
    chain = [{"parent": k - 1, "depth": k, "value": 1.0, "visits": 1} for k in range(3000)]
    assert len(circles(drawing.tree(chain))) == 2999


def test_a_path_rises_in_steps():
    svg = drawing.sparkline([None, 0.0, 0.0, 1.0])
    assert re.search(r'd="M2\.0 25\.0 H60\.0 V25\.0 H118\.0 V3\.0"', svg)
    assert drawing.sparkline([1.0]) == ""


def test_the_gallery_is_small(folder, tmp_path):
    for number in range(3):
        keep(folder, number)
    page(folder)
    assert Path(folder.path / "gallery.html").stat().st_size < 200_000
