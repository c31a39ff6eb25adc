"""Takes a screenshot of every tab of a running app, at the width of a desk and of a phone.

    diffalign demo --judge MODEL_OR_LORA --train "emoji-d3po-votes preferences={votes} prompts_per_round=4 rounds=4" &
    python benchmarks/screens.py http://127.0.0.1:7860 docs/img

Votes in the app that it looks at: give it one with a store of its own. Needs playwright and Chromium.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

SIZES = {"desk": (1280, 860), "phone": (390, 844)}
TABS = ("Compare", "Rank", "Improve", "Align", "Arena")
CHROMIUM = "/usr/bin/chromium"


def wait_for_pair(page: Page) -> None:
    page.wait_for_selector(".da-side:enabled", timeout=120_000)
    page.wait_for_timeout(300)


def prepare(page: Page) -> None:
    """Give every tab something to show."""
    wait_for_pair(page)
    page.select_option(".da-mode", "judge")
    for key in ("ArrowLeft", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowLeft", "ArrowRight"):
        wait_for_pair(page)
        page.keyboard.press(key)
    page.select_option(".da-mode", "train")
    for key in ("ArrowLeft", "ArrowRight") * 4:
        wait_for_pair(page)
        page.keyboard.press(key)
    wait_for_pair(page)
    page.get_by_role("tab", name="Rank").click()
    page.get_by_role("button", name="Start", exact=True).first.click()
    page.wait_for_selector(".da-pick", timeout=120_000)
    page.locator(".da-pick").nth(1).click()
    page.locator(".da-pick").nth(3).click()
    page.get_by_role("tab", name="Improve").click()
    page.locator("button:visible", has_text="Start").click()
    page.wait_for_selector("#best-picture img", timeout=120_000)
    page.wait_for_timeout(20_000)
    page.get_by_role("tab", name="Align").click()
    page.wait_for_selector(".da-heldout", timeout=120_000)
    if page.locator("text=nothing was trained yet").count():
        page.click("text=Train from the votes")
    page.wait_for_selector("#progress >> text=Done", timeout=900_000)
    page.wait_for_selector("text=After, at strength 1", timeout=120_000)


def shoot(page: Page, out: Path, size: str, tabs: tuple[str, ...] = TABS) -> None:
    for tab in tabs:
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(6000 if tab == "Align" else 1500)
        page.screenshot(path=out / f"app-{tab.lower()}-{size}.png", full_page=True)


def main(url: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.goto(url)
        prepare(page)
        for size, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            shoot(page, out, size)
        page.emulate_media(color_scheme="dark")
        page.reload()
        wait_for_pair(page)
        shoot(page, out, "dark", ("Compare", "Arena"))
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
