"""Pictures of every tab, to look at: python -m tests.browser.screenshots WORKSPACE FOLDER [--chat "a question"]

Wide and narrow, light and dark. With --chat, a question is asked in Chat and in Compare first (this loads the model).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.conftest import FLAGS, App, chromium_path
from training.config import DEFAULT_MODEL

TABS = (
    "Rank",
    "Chat",
    "Compare",
    "Leaderboard",
    "Train",
    "Runs",
    "Checkpoints",
    "Rounds",
    "Quality",
    "Data",
    "Team",
)
SIZES = {"wide": {"width": 1440, "height": 900}, "narrow": {"width": 390, "height": 844}}


def open_tab(page: Page, name: str) -> None:
    """Click the tab, behind the overflow menu where it is there."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.first.is_visible():
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    else:
        tab.first.click()
    page.wait_for_timeout(1500)


def chat(page: Page, question: str) -> None:
    """Ask the newest checkpoint in Chat and wait for its answer."""
    open_tab(page, "Chat")
    page.locator("#chat-checkpoint").select_option(index=1)
    page.locator("#chat-box textarea").fill(question)
    page.locator("#chat-box textarea").press("Enter")
    expect(page.locator("#chat-stop")).to_be_visible(timeout=60_000)
    expect(page.locator("#chat-stop")).to_be_hidden(timeout=180_000)


def ask(page: Page, question: str) -> None:
    """Ask the newest checkpoint in Chat, and all that Compare proposes."""
    chat(page, question)
    open_tab(page, "Compare")
    page.locator("#compare-prompt textarea").fill(question)
    page.locator("#compare-run").click()
    expect(page.locator("#compare-votes")).to_be_visible(timeout=180_000)


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base-model", default=DEFAULT_MODEL)
    parser.add_argument("--chat")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    app = App(options.workspace.resolve(), options.base_model)
    app.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
            for size, viewport in SIZES.items():
                for scheme in ("light", "dark"):
                    page = browser.new_page(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
                    page.goto(app.url)
                    expect(page.get_by_role("tab", name="Rank", exact=True).first).to_be_visible(timeout=30_000)
                    if options.chat and size == "wide" and scheme == "light":
                        ask(page, options.chat)
                    for name in TABS:
                        open_tab(page, name)
                        page.screenshot(path=options.folder / f"{name.lower()}-{size}-{scheme}.png")
                    page.close()
            browser.close()
    finally:
        app.stop()


if __name__ == "__main__":
    main()
