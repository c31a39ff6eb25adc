"""The app in a real browser, by mouse and by keys."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from app.scribble import session
from app.serving import Server, painting, scribbling, within
from safetensors.torch import load_file

from diffalign.preferences import Store

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install 'diffalign[test]'"
)
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium")
TINY = "emoji-d3po-votes preferences={votes} rounds=2 prompts_per_round=4 heldout_limit=2 lr=0.002"
HANGS = 300_000
"""Milliseconds after which something hangs, however busy the machine is."""
DESK, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
KEYS = {"ArrowLeft": "a", "ArrowRight": "b", "ArrowDown": "tie", "ArrowUp": "both_bad"}
TABS = ("Compare", "Rank", "Improve", "Align", "Arena")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        made = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = painting(tmp_path_factory.mktemp("app"), "--train", TINY)
    yield server
    server.stop()


@dataclass
class Place:
    """Where an app is, and where its votes are."""

    url: str
    folder: Path


@pytest.fixture
def noise(tmp_path: Path) -> Iterator[Place]:
    with within(session(tmp_path, ("other",))) as url:
        yield Place(url, tmp_path)


def opened(browser: Any, server: Server | Place, **options: Any) -> Any:
    page = browser.new_context(viewport=DESK, **options).new_page()
    page.set_default_timeout(HANGS)
    page.goto(server.url)
    return page


def ready(page: Any) -> int:
    """Waits for a pair; its showing."""
    page.wait_for_selector(".da-side:enabled")
    page.wait_for_timeout(300)
    return int(page.get_attribute(".da-compare", "data-showing"))


def following(page: Any, showing: int) -> int:
    """Waits for another pair than this."""
    page.wait_for_selector(f".da-compare:not([data-showing='{showing}']) .da-side:enabled")
    return ready(page)


def kept(server: Server | Place) -> list[Any]:
    store = Store.open(server.folder / "votes.db")
    votes = store.votes()
    store.close()
    return votes


def to_tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def press(page: Any, name: str) -> None:
    """A button of the tab that is open."""
    page.locator("button:visible", has_text=name).click()


def sources(page: Any, images: str) -> list[str]:
    return [image.get_attribute("src") for image in page.query_selector_all(images)]


def test_voting_by_mouse_and_by_keys(browser: Any, noise: Place):
    page, said = opened(browser, noise), {}
    clicks = (".da-side[data-choice=a]", ".da-button[data-choice=b]", ".da-button[data-choice=tie]")
    ways = [(page.click, click, re.search("choice=(.*)]", click)[1]) for click in clicks]
    for act, how, choice in ways + [(page.keyboard.press, key, choice) for key, choice in KEYS.items()]:
        showing = ready(page)
        said[showing] = choice
        act(how)
        following(page, showing)
    assert {vote.showing: vote.choice for vote in kept(noise)} == said
    assert "7 votes in · 100 worth having" in page.inner_text(".da-count")
    assert all(0.2 < vote.seconds < 60 for vote in kept(noise))


def test_undoing_skipping_and_double_clicks(browser: Any, noise: Place):
    page = opened(browser, noise)
    first = ready(page)
    page.dblclick(".da-side[data-choice=a]")
    second = following(page, first)
    page.wait_for_timeout(500)
    assert [vote.choice for vote in kept(noise)] == ["a"]
    page.keyboard.press("z")
    assert following(page, second) == first
    assert "taken back" in page.inner_text(".da-status")
    page.keyboard.press("ArrowRight")
    assert following(page, first) == second
    assert [vote.choice for vote in kept(noise)] == ["b"]
    page.click(".da-skip")
    following(page, second)
    assert len(kept(noise)) == 1


def test_keys_do_nothing_while_somebody_types(browser: Any, noise: Place):
    page = opened(browser, noise)
    showing = ready(page)
    page.click(".da-own input")
    for key in ("z", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
    to_tab(page, "Arena")
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)
    assert kept(noise) == []
    assert int(page.get_attribute(".da-compare", "data-showing")) == showing


def test_own_prompts_are_shown_as_they_are_written(browser: Any, noise: Place):
    page, prompt = opened(browser, noise), "<img src=x onerror='document.title=1'>"
    showing = ready(page)
    page.fill(".da-own input", prompt)
    page.click(".da-own button")
    following(page, showing)
    assert page.inner_text(".da-what") == prompt
    assert page.title() == "diffalign"


def test_reloading_in_the_middle_shows_the_same_pair(browser: Any, noise: Place):
    page = opened(browser, noise)
    showing, pictures = ready(page), sources(page, ".da-side img")
    page.reload()
    assert ready(page) == showing
    assert sources(page, ".da-side img") == pictures


def test_two_browsers_at_once_are_two_users(browser: Any, noise: Place):
    pages = [opened(browser, noise) for _ in range(2)]
    showings = [ready(page) for page in pages]
    assert showings[0] != showings[1]
    pages[0].keyboard.press("ArrowLeft")
    pages[1].keyboard.press("ArrowRight")
    for page, showing in zip(pages, showings, strict=True):
        following(page, showing)
    votes = {vote.showing: vote for vote in kept(noise)}
    assert [votes[showing].choice for showing in showings] == ["a", "b"]
    assert len({vote.user for vote in votes.values()}) == 2


@pytest.mark.slow
def test_a_server_that_is_killed_loses_no_vote(browser: Any, tmp_path: Path):
    server = scribbling(tmp_path)
    try:
        page = opened(browser, server)
        showing = ready(page)
        server.kill()
        page.keyboard.press("ArrowLeft")
        page.wait_for_function("document.querySelector('.da-status').innerText.includes('cannot be reached')")
        server.start()
        following(page, showing)
    finally:
        server.stop()
    assert [(vote.showing, vote.choice) for vote in kept(server)] == [(showing, "a")]


def test_nothing_jumps_and_nothing_is_wider_than_a_phone(browser: Any, noise: Place):
    page = opened(browser, noise)
    boxes = "[...document.querySelectorAll('.da-button, .da-box')].map((e) => e.getBoundingClientRect().top)"
    page.wait_for_selector(".da-compare")
    before = page.evaluate(boxes)
    showing = ready(page)
    assert page.evaluate(boxes) == before
    page.keyboard.press("ArrowLeft")
    following(page, showing)
    assert page.evaluate(boxes) == before
    page.set_viewport_size(PHONE)
    for tab in TABS:
        to_tab(page, tab)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], tab


def test_every_control_has_a_name(browser: Any, noise: Place):
    page = opened(browser, noise)
    ready(page)
    nameless = """[...document.querySelectorAll('button, input, select, textarea')].filter((e) => e.offsetParent
        && !e.innerText.trim() && !e.getAttribute('aria-label') && !e.title && !(e.labels && e.labels.length))
        .map((e) => e.outerHTML.slice(0, 120))"""
    for tab in TABS:
        to_tab(page, tab)
        page.wait_for_timeout(200)
        assert page.evaluate(nameless) == []


@pytest.mark.weights
def test_ranking_leads_to_new_pictures(browser: Any, app: Server):
    page = opened(browser, app)
    to_tab(page, "Rank")
    press(page, "Start")
    page.wait_for_selector(".da-pick")
    first = sources(page, ".da-pick img")
    page.wait_for_function("[...document.querySelectorAll('.da-pick img')].every((i) => i.naturalWidth > 0)")
    assert page.locator(".da-go").is_disabled()
    for place in (2, 0, 1):
        page.locator(".da-pick").nth(place).click()
    assert page.locator(".da-pick").nth(0).locator(".da-badge").inner_text() == "2."
    page.click(".da-go")
    page.wait_for_selector("text=Round 2")
    assert set(sources(page, ".da-pick img")) - set(first)
    page.reload()
    to_tab(page, "Rank")
    page.wait_for_selector("text=Round 2")
    press(page, "I like this one")
    page.wait_for_selector("#ranked img")
    (vote,) = [vote for vote in kept(app) if vote.kind == "ranking"]
    assert [f"/api/picture/{picture}" for picture in vote.choice] == [first[2], first[0], first[1]]


@pytest.mark.weights
def test_reno_changes_the_picture_and_can_be_stopped(browser: Any, app: Server):
    page = opened(browser, app)
    to_tab(page, "Improve")
    page.get_by_label("number input for Samples").fill("100")
    press(page, "Start")
    page.wait_for_selector("#best-picture img")
    (first,) = sources(page, "#best-picture img")
    page.wait_for_function("(src) => document.querySelector('#best-picture img').src !== src", arg=first)
    press(page, "Stop")
    page.wait_for_selector("#best-picture figcaption:has-text('stopped')")
    assert int(re.search(r"of (\d+) sample", page.inner_text("#best-picture"))[1]) < 100


@pytest.mark.slow
@pytest.mark.weights
def test_votes_train_the_model_and_give_a_lora(browser: Any, app: Server, tmp_path: Path):
    page = opened(browser, app, accept_downloads=True)
    for _ in range(6):
        showing = ready(page)
        page.keyboard.press("ArrowLeft")
        following(page, showing)
    to_tab(page, "Align")
    page.wait_for_selector("text=nothing was trained yet")
    page.click("text=Train from the votes")
    page.wait_for_selector("text=After, at strength 1")
    page.wait_for_selector("text=Done")
    before, after = strips(page)
    assert len(before) == len(after) == 8
    assert before != after
    states = {name: downloaded(page, name, tmp_path) for name in ("diffusers", "ComfyUI")}
    assert all(key.startswith("unet.") for key in states["diffusers"])
    assert all(key.startswith("lora_unet_") for key in states["ComfyUI"])
    to_tab(page, "Compare")
    page.select_option(".da-mode", "judge")
    ready(page)
    models = {vote.models for vote in kept(app) if vote.kind == "pair"}
    assert models == {("emoji", "emoji")}


def strips(page: Any) -> list[list[str]]:
    return [sources(strip, "img") for strip in page.query_selector_all(".da-strip")]


def downloaded(page: Any, layout: str, folder: Path) -> dict[str, Any]:
    with page.expect_download() as download:
        page.click(f"text=Download the LoRA ({layout})")
    download.value.save_as(folder / layout)
    return load_file(folder / layout)
