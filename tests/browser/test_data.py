"""The Data tab in a real browser: files in with a preview, searched, retracted, out again, and a person deleted."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.conftest import MakeApp, seed_rows

HOSTILE = '<img src=x onerror="window.hacked = 1">${window.hacked = 2}{{window.hacked}}'
GIVEN = [
    {"prompt": "One?", "completions": ["a", "b", "c"], "ranks": [2, 1, None], "annotator": "ann", "comment": HOSTILE},
    {"prompt": HOSTILE, "chosen": "yes", "rejected": HOSTILE, "annotator": HOSTILE},
]


def open_data(page: Page, url: str) -> None:
    page.goto(url)
    tab = page.get_by_role("tab", name="Data", exact=True)
    expect(page.get_by_role("tab", name="Rank", exact=True).first).to_be_visible()
    if tab.first.is_visible():
        tab.first.click()
    else:
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text="Data").click()
    expect(page.locator("#data-counts")).to_contain_text("Prompts")


def choose(page: Page, file: Path) -> None:
    clear = page.locator("#data-import").get_by_role("button", name="Clear")
    if clear.count():
        clear.click()
    page.locator("#data-import input[type=file]").set_input_files(file)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_import_search_retract_and_export(make_app: MakeApp, page: Page, tmp_path: Path) -> None:
    app = make_app(seed_rows(2))
    open_data(page, app.url)
    expect(page.locator("#data-list")).to_contain_text("No ranking yet")
    page.locator("#data-export").click()
    expect(page.locator("#data-exported")).to_contain_text("There are no rankings to learn from yet")

    choose(page, write(tmp_path / "good.jsonl", GIVEN))
    preview = page.locator("#data-preview")
    expect(preview).to_contain_text("good.jsonl: rows with the columns prompt, completions, ranks")
    expect(preview.locator("li")).to_have_count(2)
    expect(preview.locator("li").first).to_contain_text("a ranking of 3 by ann")
    assert app.query("SELECT count(*) AS n FROM events") == [{"n": 0}]
    page.locator("#data-import-start").click()
    expect(page.locator("#data-imported")).to_contain_text("2 rows read; added 2 prompts, 2 tasks, 2 rankings")
    expect(page.locator("#data-counts")).to_contain_text("Rankings2")
    expect(page.locator("#data-counts")).to_contain_text("Comparisons2")
    entries = page.locator("#data-list details")
    expect(entries).to_have_count(2)
    expect(entries.nth(1)).to_contain_text("2 1 –")
    assert entries.nth(1).locator("summary .remark").inner_text() == HOSTILE
    assert entries.nth(0).locator("summary .what").inner_text() == HOSTILE
    assert page.evaluate("window.hacked") is None

    page.locator("#data-words input, #data-words textarea").first.fill("one")
    page.keyboard.press("Enter")
    expect(entries).to_have_count(1)
    page.locator("#data-words input, #data-words textarea").first.fill("nowhere")
    page.keyboard.press("Enter")
    expect(page.locator("#data-list")).to_contain_text("No ranking fits")
    page.locator("#data-words input, #data-words textarea").first.fill("")
    page.keyboard.press("Enter")
    expect(entries).to_have_count(2)

    entries.nth(1).locator("summary").click()
    expect(entries.nth(1).locator(".answers li").first).to_contain_text("1")
    entries.nth(1).get_by_role("button", name="Retract this ranking").click()
    page.locator("#data-retract-do").click()
    expect(page.locator("#data-retracted")).to_contain_text("Say why")
    page.locator("#data-reason textarea, #data-reason input").first.fill("clicked at random")
    page.locator("#data-retract-do").click()
    expect(page.locator("#data-retracted")).to_contain_text("was retracted")
    expect(entries).to_have_count(1)
    (event,) = app.query("SELECT payload FROM events WHERE kind = 'retract'")
    assert json.loads(event["payload"])["retracted_by"] == "owner"

    page.locator("#data-export").click()
    expect(page.locator("#data-exported")).to_contain_text("1 row · SHA-256")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download rankings-").click()
    content = Path(download.value.path()).read_bytes()
    (snapshot,) = app.query("SELECT sha256, kind FROM snapshots")
    assert snapshot == {"sha256": hashlib.sha256(content).hexdigest(), "kind": "preferences"}
    (row,) = [json.loads(line) for line in content.decode().splitlines()]
    assert (row["ranks"], row["annotator"]) == ([1, 2], HOSTILE)

    page.locator("#data-form input").click()
    page.get_by_role("option", name="Rankings as a table (CSV)").click()
    page.locator("#data-export").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download csv-").click()
    table = Path(download.value.path()).read_text(encoding="utf-8")
    assert next(csv.DictReader(io.StringIO(table, newline="")))["prompt"] == HOSTILE


def test_bad_rows_and_columns(make_app: MakeApp, page: Page, tmp_path: Path) -> None:
    app = make_app(seed_rows(1))
    open_data(page, app.url)
    bad = [GIVEN[0], {"prompt": "Two?", "completions": ["a", "b"], "ranks": [1]}]
    choose(page, write(tmp_path / "bad.jsonl", bad))
    expect(page.locator("#data-preview li").nth(1)).to_contain_text("bad.jsonl:2: 2 completions but 1 ranks")
    page.locator("#data-import-start").click()
    expect(page.locator("#data-imported")).to_contain_text(
        "Nothing was imported: bad.jsonl:2: 2 completions but 1 ranks"
    )
    assert app.query("SELECT count(*) AS n FROM events") == [{"n": 0}]
    page.get_by_label("Leave it out, import the others").check()
    page.locator("#data-import-start").click()
    expect(page.locator("#data-imported")).to_contain_text("1 bad rows left out")
    expect(page.locator("#data-imported li")).to_contain_text("bad.jsonl:2: 2 completions but 1 ranks")
    expect(page.locator("#data-list details")).to_have_count(1)

    file = tmp_path / "votes.csv"
    file.write_text("item,one,two\nWhich?,x,y\n")
    choose(page, file)
    expect(page.locator("#data-preview")).to_contain_text('no "prompt"')
    page.locator("#data-columns button").first.click()
    for field, column in (("prompt", "item"), ("chosen", "two"), ("rejected", "one")):
        page.locator(f"#data-map-{field} input").click()
        page.locator(f"#data-map-{field}").get_by_role("option", name=column, exact=True).click()
    expect(page.locator("#data-preview li")).to_contain_text("a ranking of 2")
    page.locator("#data-import-start").click()
    expect(page.locator("#data-imported")).to_contain_text("1 rows read; added 1 prompts, 1 tasks, 1 rankings")


def test_a_person_is_deleted(make_app: MakeApp, page: Page, tmp_path: Path) -> None:
    app = make_app([GIVEN[0] | {"comment": "Xylophonmarker"}])
    open_data(page, app.url)
    expect(page.locator("#data-list details")).to_have_count(1)
    page.locator("#data-erase button").first.click()
    page.locator("#data-erase-who input").click()
    page.get_by_role("option", name="ann", exact=True).click()
    page.locator("#data-erase-do").click()
    expect(page.locator("#data-erased")).to_contain_text("Type ann to confirm; nothing was deleted")
    page.locator("#data-erase-confirm textarea, #data-erase-confirm input").first.fill("ann")
    page.locator("#data-erase-do").click()
    expect(page.locator("#data-erased")).to_contain_text("Deleted: 1 event")
    assert app.query("SELECT payload FROM events") == [{"payload": '{"erased": true}'}]
    for path in app.workspace.glob("preferences.sqlite*"):
        assert b"Xylophonmarker" not in path.read_bytes()


def test_pages_on_a_phone(make_app: MakeApp, phone: Page) -> None:
    app = make_app([GIVEN[0] | {"prompt": f"Question {number}?"} for number in range(30)])
    open_data(phone, app.url)
    entries = phone.locator("#data-list details")
    expect(entries).to_have_count(25)
    expect(entries.first).to_contain_text("Question 29?")
    phone.locator("#data-older").tap()
    expect(entries).to_have_count(5)
    expect(phone.locator("#data-older")).to_be_hidden()
    phone.locator("#data-newer").tap()
    expect(entries).to_have_count(25)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
