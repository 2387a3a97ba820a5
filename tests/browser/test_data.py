"""The Data tab in a real browser: files in, files out, and what was said last."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.conftest import MakeApp, seed_rows

HOSTILE = '<img src=x onerror="window.hacked = 1">${window.hacked = 2}{{window.hacked}}'


def test_import_a_file_and_export_it_again(make_app: MakeApp, page: Page, tmp_path: Path) -> None:
    app = make_app(seed_rows(2))
    given = [
        {
            "prompt": "One?",
            "completions": ["a", "b", "c"],
            "ranks": [2, 1, None],
            "annotator": "ann",
            "comment": HOSTILE,
        },
        {"prompt": HOSTILE, "chosen": "yes", "rejected": "no", "annotator": HOSTILE},
    ]
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    bad.write_text(json.dumps(given[0]) + '\n{"prompt": "Two?", "completions": ["a", "b"], "ranks": [1]}\n')

    page.goto(app.url)
    page.get_by_role("tab", name="Data").click()
    expect(page.locator("#data-latest")).to_contain_text("No ranking yet")
    page.get_by_role("button", name="Export as JSONL").click()
    expect(page.locator("#data-exported")).to_contain_text("There are no rankings to learn from yet")

    page.locator("#data-import input[type=file]").set_input_files(bad)
    expect(page.locator("#data-imported")).to_contain_text(
        "Nothing was imported. bad.jsonl:2: 2 completions but 1 ranks"
    )
    assert app.query("SELECT count(*) AS n FROM events") == [{"n": 0}]
    page.locator("#data-import").get_by_role("button", name="Clear").click()
    page.locator("#data-import input[type=file]").set_input_files(good)
    expect(page.locator("#data-imported")).to_contain_text("2 rows read; added 2 prompts, 2 tasks, 2 rankings")
    expect(page.locator("#data-counts")).to_contain_text("Rankings2")
    expect(page.locator("#data-counts")).to_contain_text("Comparisons2")
    latest = page.locator("table.latest tbody tr")
    expect(latest).to_have_count(2)
    expect(latest.nth(1)).to_contain_text("2 1 –")
    assert latest.nth(1).locator("td").last.inner_text() == HOSTILE
    assert latest.nth(0).locator("td").nth(2).inner_text() == HOSTILE

    page.get_by_role("button", name="Export as JSONL").click()
    expect(page.locator("#data-exported")).to_contain_text("2 rows · SHA-256")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download preferences-").click()
    content = Path(download.value.path()).read_bytes()
    (snapshot,) = app.query("SELECT sha256, kind FROM snapshots")
    assert snapshot == {"sha256": hashlib.sha256(content).hexdigest(), "kind": "preferences"}
    exported = [json.loads(line) for line in content.decode().splitlines()]
    assert [row["ranks"] for row in exported] == [[2, 1, None], [1, 2]]
    assert exported[1]["annotator"] == HOSTILE
    assert page.evaluate("window.hacked") is None
