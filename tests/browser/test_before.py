"""Before a run, in a real browser: whose labels it learns from, and the weights that go into its snapshot."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from data.formats import read_rows
from tests.browser.conftest import App, MakeApp

HOSTILE = '<img src=x onerror="window.hacked = 1">'


def rankings(count: int) -> list[dict[str, Any]]:
    """Two people who agree, and one who says the opposite."""
    opinions = (("ann", [1, 2, 3]), (HOSTILE, [1, 2, 3]), ("cem", [3, 2, 1]))
    return [
        {
            "prompt": f"Question {number}?",
            "completions": [f"one {number}, and at length", f"two {number}", f"3 {number}"],
            "ranks": ranks,
            "annotator": name,
        }
        for number in range(count)
        for name, ranks in opinions
    ]


@pytest.fixture(scope="module")
def app(make_app: MakeApp) -> App:
    return make_app(rankings(10))


def test_what_a_run_learns_from_and_its_weights(app: App, page: Page) -> None:
    page.goto(app.url)
    page.get_by_role("tab", name="Train", exact=True).click()
    data = page.locator("#train-data")
    expect(data).to_contain_text("90 comparisons")
    expect(data).to_contain_text("3 annotators")
    expect(data.locator(".notice").first).to_be_visible()  # people agree too little, and it is said what to do
    expect(data).to_contain_text("sharpen the guidelines")
    data.locator("summary").click()
    expect(data).to_contain_text("81 comparisons of 9 prompts to train on, 9 comparisons of 1 prompt held out")
    expect(data.locator("tbody tr")).to_have_count(3)
    expect(data).to_contain_text(HOSTILE)

    # the filter: who says the opposite is left out, on the page and in the snapshot
    page.locator("#train-weigh input").check()
    expect(data).to_contain_text("60 comparisons")
    page.locator("#form-reward .knob-max_steps input").fill("1")
    page.locator("#train-start").click()
    expect(page.locator("#train-problem")).to_contain_text("Added as reward/0001")
    (snapshot,) = app.query("SELECT path, filters FROM snapshots")
    assert json.loads(snapshot["filters"])["weight_by_reliability"] is True
    learned = [row for _, row in read_rows(app.workspace / snapshot["path"])]
    assert {row["annotator"] for row in learned} == {"ann", HOSTILE}
    assert all(0 < row["weight"] < 1 for row in learned)
    assert page.evaluate("window.hacked") is None

    # no such choice where weights mean nothing
    page.locator('#train-method input[value="ppo"]').check()
    expect(page.locator("#train-weigh")).to_be_hidden()
    expect(data).to_contain_text("10 prompts")
