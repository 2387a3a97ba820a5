"""Three checkpoints compared blindly by clicks: vote, names, the conversation goes on, the standings change; and many
prompts at once become a labeling project. A tiny model, the real code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import App
from tests.labeler.studio import chat_with_checkpoints

ANSWER_MS = 120_000
HOSTILE = "<img src=x onerror='window.hacked = 1'>${window.hacked = 2} What is a cat?"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[App]:
    """An app whose base model has two policies that answer differently; nobody has voted."""
    app = App(tmp_path_factory.mktemp("app") / "workspace", str(tiny_model))
    chat_with_checkpoints(app.workspace, tiny_model).workspace.store.close()
    app.start()
    yield app
    app.end_runs()
    app.stop()


def open_tab(page: Page, app: App, name: str) -> None:
    if not page.url.startswith(app.url):
        page.goto(app.url)
    page.get_by_role("tab", name=name, exact=True).click()


def add_model(page: Page, name: str) -> None:
    page.locator("#compare-models input").click()
    page.get_by_role("option", name=name, exact=True).click()
    page.keyboard.press("Escape")
    expect(page.locator("#compare-models")).to_contain_text(name)


def rank(page: Page, *ranks: int) -> None:
    expect(page.locator("#compare-ranks")).to_be_visible(timeout=ANSWER_MS)
    for letter, given in zip("ABC", ranks, strict=True):
        group = page.locator("#compare-ranks fieldset").filter(has_text=re.compile(rf"^\s*{letter}"))
        group.locator(f'input[value="{given}"]').check()
    page.get_by_role("button", name="Submit ranking").click()
    expect(page.locator("#compare-sides .name")).to_have_count(3)


def test_compare_three_and_see_the_standings_change(app: App, page: Page) -> None:
    open_tab(page, app, "Leaderboard")
    expect(page.locator("#leaderboard")).to_contain_text("No blind vote has compared two checkpoints yet")

    open_tab(page, app, "Compare")
    expect(page.locator("#compare-models")).to_contain_text("dpo/0002 step 1")
    add_model(page, "dpo/0001 step 1")
    page.locator("#tab-compare button.label-wrap", has_text="Settings").click()
    longest = page.get_by_label("Maximum length").locator("visible=true")
    expect(longest).to_be_visible()
    page.wait_for_timeout(500)  # a field that is just made still gets its first value
    longest.fill("12")
    longest.blur()
    page.locator("#compare-prompt textarea").fill(HOSTILE)
    page.locator("#compare-run").click()
    expect(page.locator("#compare-ranks")).to_be_visible(timeout=ANSWER_MS)
    assert page.locator("#compare-sides .name").count() == 0
    assert "dpo/" not in page.locator("#compare-sides").inner_html()

    # what differs from the first answer, word by word; and back
    differences = page.get_by_role("button", name="Show differences from A")
    differences.click()
    expect(page.locator("#compare-sides .differences-text")).to_have_count(2)
    expect(page.locator("#compare-sides .differences-text :is(ins, del)").first).to_be_visible()
    expect(page.locator("#compare-sides .answer:visible")).to_have_count(1)
    differences.click()
    expect(page.locator("#compare-sides .differences-text")).to_have_count(0)
    expect(page.locator("#compare-sides .answer:visible")).to_have_count(3)

    # the vote is stored as one ranking with a tie, then the names are shown
    answers = page.locator("#compare-sides .side")
    preferred = answers.nth(1).get_attribute("data-text")
    rank(page, 2, 1, 2)
    (event,) = app.query("SELECT * FROM events")
    payload = json.loads(event["payload"])
    assert (event["source"], payload["ranks"]) == ("compare", [2, 1, 2])
    names = {row["id"]: row["name"] for row in app.query("SELECT id, name FROM checkpoints")}
    stored = {row["id"]: row for row in app.query("SELECT * FROM completions WHERE source = 'compare'")}
    assert stored[payload["completion_ids"][1]]["text"] == preferred
    in_order = [names[stored[each]["checkpoint_id"]] for each in payload["completion_ids"]]
    expect(page.locator("#compare-sides .name")).to_have_text(in_order)
    assert {json.loads(row["sampling"])["max_new_tokens"] for row in stored.values()} == {12}

    open_tab(page, app, "Leaderboard")
    board = page.locator("#leaderboard")
    expect(board).to_contain_text("3 comparisons, 1 ranking, 1 prompt, 1 annotator")
    expect(board.locator("svg.interval")).to_have_count(3)
    places = board.get_by_role("region", name="Standings").locator("tbody tr")
    expect(places.first).to_contain_text(in_order[1])
    expect(places.first).to_contain_text("100% of 2")
    expect(board).to_contain_text("Won or lost every vote")
    before = places.all_inner_texts()
    assert sum(bool(re.search(r"[+-]\d+ \(-?\d+ to -?\d+\)", text)) for text in before) == 2  # all but the zero

    # the conversation goes on with the preferred answer, for all; the next vote changes the standings
    open_tab(page, app, "Compare")
    page.locator("#compare-next textarea").fill("And a dog?")
    page.locator("#compare-proceed").click()
    expect(page.locator("#compare-next")).to_be_hidden()
    expect(page.locator("#compare-ranks")).to_be_visible(timeout=ANSWER_MS)
    assert page.locator("#compare-sides .name").count() == 0
    page.locator("#compare-sides .talk summary").click()
    expect(page.locator("#compare-sides .talk")).to_contain_text(HOSTILE)
    assert page.locator("#compare-sides .talk img").count() == 0
    assert page.evaluate("window.hacked") is None
    rank(page, 1, 2, 3)
    second = json.loads(app.query("SELECT payload FROM events ORDER BY id DESC")[0]["payload"])
    sql = "SELECT p.messages FROM completions AS c JOIN prompts AS p ON p.id = c.prompt_id WHERE c.id = ?"
    said = json.loads(app.query(sql, (second["completion_ids"][0],))[0]["messages"])
    assert said[-2:] == [{"role": "assistant", "content": preferred}, {"role": "user", "content": "And a dog?"}]

    open_tab(page, app, "Leaderboard")
    expect(board).to_contain_text("6 comparisons, 2 rankings, 2 prompts, 1 annotator")
    after = places.all_inner_texts()
    assert len(after) == 3
    assert after != before
    page.locator("#leaderboard-project input").click()
    page.get_by_role("option", name="First project", exact=True).click()
    expect(board).to_contain_text("No blind vote has compared two checkpoints yet")


def test_many_prompts_become_a_labeling_project(app: App, page: Page) -> None:
    open_tab(page, app, "Compare")
    page.locator("#compare-batch button.label-wrap").click()
    page.locator("#batch-create").click()
    expect(page.locator("#batch-told")).to_contain_text("Give the project a name")
    page.locator("#batch-name :is(input, textarea)").fill("Base against newest")
    page.locator("#batch-count input").fill("2")
    page.locator("#batch-count input").blur()
    page.locator("#batch-create").click()
    expect(page.locator("#batch-told")).to_contain_text("is queued: 2 checkpoints to answer 2 prompts")
    assert app.query("SELECT method FROM jobs") == [{"method": "sample"}]
