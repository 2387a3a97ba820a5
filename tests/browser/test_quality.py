"""The Quality tab in a real browser: figures, a disagreement that a lead settles, and what is learned from then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from data.formats import read_rows
from labeler import snapshots
from labeler.workspace import open_workspace
from tests.browser.conftest import App, MakeApp

HOSTILE = '<img src=x onerror="window.hacked = 1">${window.hacked = 2}'


def rankings(count: int) -> list[dict[str, Any]]:
    """Two people on each task: they agree but on the last one."""
    rows = []
    for number in range(count):
        for name, ranks in (("ann", [1, 2, 3]), (HOSTILE, [1, 2, 3] if number < count - 1 else [3, 2, 1])):
            row = {
                "prompt": f"Question {number}? {HOSTILE}",
                "completions": [f"**one** {number}", f"two {number} {HOSTILE}", f"three {number}"],
                "ranks": ranks,
                "annotator": name,
                "comment": f"because {HOSTILE}",
            }
            rows.append(row)
    return rows


@pytest.fixture(scope="module")
def app(make_app: MakeApp) -> App:
    return make_app(rankings(8))


def open_quality(page: Page, app: App) -> None:
    page.goto(app.url)
    tab = page.get_by_role("tab", name="Quality", exact=True)
    page.locator("#tab-rank").wait_for()
    if not tab.first.is_visible():
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text="Quality").click()
    else:
        tab.first.click()
    expect(page.locator("#quality-figures")).to_contain_text("Same vote")


def learned(app: App, folder: Path) -> list[tuple[str, list[int]]]:
    """Annotator and ranks of the last task in a snapshot of the app's workspace."""
    workspace = open_workspace(app.workspace, app.base_model, seed_file=None)
    path = folder / "snapshot.jsonl"
    snapshots.write_snapshot(workspace.store, path, "preferences", {}, None)
    workspace.store.close()
    rows = [row for _, row in read_rows(path)]
    return [(row["annotator"], row["ranks"]) for row in rows if row["prompt"][0]["content"].startswith("Question 7?")]


def test_a_lead_reads_the_figures_and_settles_a_disagreement(app: App, page: Page, tmp_path: Path) -> None:
    open_quality(page, app)
    figures = page.locator("#quality-figures")
    expect(figures).to_contain_text("8 tasks that two or more people ranked")
    expect(figures.locator(".figures > div").first).to_contain_text("87.5%")
    expect(figures.locator(".figures > div").first).to_contain_text("n = 24 pairs of votes")
    expect(figures.locator("table.matrix")).to_contain_text("n 24 · 8 tasks")
    expect(page.locator("table.people tbody tr")).to_have_count(2)
    expect(page.locator("table.people")).to_contain_text(HOSTILE)

    found = page.locator(".disagreement")
    expect(found).to_have_count(1)
    expect(found).to_contain_text("open")
    found.click()
    said = page.locator("table.said tbody tr")
    expect(said).to_have_count(2)
    expect(said.nth(1)).to_contain_text(HOSTILE)
    expect(page.locator(".case-card strong").first).to_have_text("one")  # Markdown
    page.get_by_role("button", name="Make this final").click()
    expect(page.locator(".case-problem")).to_contain_text("Rank at least two completions")
    for name in ("Rank 1 for B", "Rank 2 for A", "Rank 2 for C"):
        page.get_by_role("button", name=name).click()
    page.get_by_label("Why (optional)").fill("B answers the question")
    assert len(learned(app, tmp_path)) == 2
    page.get_by_role("button", name="Make this final").click()
    expect(found).to_contain_text("✓ settled")
    expect(page.locator("table.said tr.final")).to_contain_text("owner, final")
    assert learned(app, tmp_path) == [("owner", [2, 1, 2])]
    (event,) = app.query("SELECT payload FROM events WHERE kind = 'adjudicate'")
    assert json.loads(event["payload"])["comment"] == "B answers the question"

    page.get_by_role("button", name="Take back the final ranking").click()
    expect(found).to_contain_text("open")
    assert [name for name, _ in learned(app, tmp_path)] == ["ann", HOSTILE]
    assert page.evaluate("window.hacked") is None


def test_it_fits_a_small_touch_screen(app: App, phone: Page) -> None:
    open_quality(phone, app)
    phone.locator(".disagreement").tap()
    phone.get_by_role("button", name="Rank 1 for C").tap()
    expect(phone.get_by_role("button", name="Rank 1 for C")).to_have_attribute("aria-pressed", "true")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
