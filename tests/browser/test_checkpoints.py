"""The Checkpoints tab by clicks and by keys: lineage, names, evaluation, downloads, import, archive, delete."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from labeler.workspace import open_workspace
from tests.browser.conftest import App
from tests.browser.screenshots import open_tab
from tests.labeler.trained import POLICY, REWARD, trained_workspace

WORK_MS = 300_000
HOSTILE = '<img src=x onerror="window.hacked = 1">${window.hacked = 2}{{x}}'


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("app") / "workspace"
    trained_workspace(folder, tiny_model).store.close()
    app = App(folder, str(tiny_model))
    app.start()
    yield app
    app.stop()


def unfold(page: Page, selector: str) -> None:
    page.locator(f"{selector} button.label-wrap").click()


def test_a_checkpoint_from_its_lineage_to_its_end(app: App, page: Page, tmp_path: Path) -> None:
    page.goto(app.url)
    page.locator("#tab-rank").wait_for()
    open_tab(page, "Checkpoints")
    nodes = page.locator("#checkpoints-graph g[data-checkpoint]")
    expect(nodes).to_have_count(3)
    expect(page.locator("#checkpoint-head h3")).to_have_text(POLICY)  # the newest is shown first

    # a click on the drawing shows a checkpoint's page; the arrow keys and Enter do the same
    page.get_by_role("button", name=f"{REWARD}, reward model").click()
    expect(page.locator("#checkpoint-head h3")).to_have_text(REWARD)
    expect(page.locator("#checkpoint-head")).to_contain_text("48 comparisons of 1 annotator")
    (snapshot,) = app.query("SELECT sha256 FROM snapshots ORDER BY id LIMIT 1")
    expect(page.locator("#checkpoint-head")).to_contain_text(snapshot["sha256"])
    expect(page.get_by_role("button", name=f"{REWARD}, reward model")).to_have_attribute("aria-pressed", "true")
    nodes.first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#checkpoint-head h3")).to_have_text(POLICY)
    expect(page.get_by_role("button", name=f"{POLICY}, policy")).to_be_focused()

    # it is named and noted, by whatever text
    unfold(page, "#checkpoint-edit")
    name = page.locator("#checkpoint-name textarea, #checkpoint-name input")
    expect(name).to_have_value(POLICY)
    name.fill("mine")
    page.locator("#checkpoint-tags textarea, #checkpoint-tags input").fill("toy, Chat")
    page.locator("#checkpoint-note textarea").fill(HOSTILE)
    expect(name).to_have_value("mine")
    page.locator("#checkpoint-save").click()
    expect(page.locator("#checkpoint-said")).to_contain_text("Saved.")
    expect(page.locator("#checkpoint-head h3")).to_have_text("mine")
    expect(page.locator("#checkpoint-head .note")).to_have_text(HOSTILE)
    expect(page.locator("#checkpoints-table")).to_contain_text(HOSTILE)
    assert page.evaluate("window.hacked") is None
    assert app.query("SELECT name, tags FROM checkpoints WHERE id = 3") == [{"name": "mine", "tags": '["toy", "chat"]'}]

    # measured against its parent, by clicks, while one may go on
    page.locator("#checkpoint-prompts input").fill("4")
    page.locator("#checkpoint-prompts input").blur()
    page.locator("#checkpoint-evaluate").click()
    expect(page.locator("#checkpoint-report")).to_contain_text("n = 4 prompts", timeout=WORK_MS)
    expect(page.locator("#checkpoint-report")).to_contain_text("Scores higher than base")
    expect(page.locator("#checkpoint-report")).to_contain_text("Nobody has compared it")
    page.locator("#checkpoint-report details.samples summary").click()
    expect(page.locator("#checkpoint-report .side:visible")).to_have_count(8)

    # taken away, and brought in again under another name
    unfold(page, "#checkpoint-files")
    expect(page.locator("#checkpoint-push")).to_contain_text("set HF_TOKEN first")
    expect(page.locator("#checkpoint-push")).to_be_disabled()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the PEFT adapter").click()
    taken = tmp_path / "taken.zip"
    download.value.save_as(taken)
    with zipfile.ZipFile(taken) as archive:
        assert {Path(name).name for name in archive.namelist()} >= {"README.md", "adapter_model.safetensors"}
    unfold(page, "#checkpoint-import")
    page.locator("#checkpoint-import-files input[type=file]").set_input_files(taken)
    expect(page.locator("#checkpoint-import-files")).to_contain_text("taken")
    page.locator("#checkpoint-import-name textarea, #checkpoint-import-name input").fill("from elsewhere")
    page.locator("#checkpoint-import-do").click()
    expect(page.locator("#checkpoint-head h3")).to_have_text("from elsewhere", timeout=WORK_MS)
    expect(nodes).to_have_count(4)

    # archived: not offered in Chat; brought back by the same button
    page.locator("#checkpoint-archive").click()
    expect(page.locator("#checkpoint-said")).to_contain_text("Archived")
    expect(nodes).to_have_count(3)
    workspace = open_workspace(app.workspace, app.base_model, seed_file=None)
    from labeler import checkpoints

    assert [name for name, _ in checkpoints.choices(workspace)] == ["base tiny", "mine"]
    page.locator("#checkpoint-archive").click()
    expect(page.locator("#checkpoint-archive")).to_have_text("Archive")

    # deleted: what rests on it is shown first, the name is asked for, a tombstone stays
    page.get_by_role("button", name=f"{REWARD}, reward model").click()
    expect(page.locator("#checkpoint-head h3")).to_have_text(REWARD)
    unfold(page, "#checkpoint-delete")
    expect(page.locator("#checkpoint-dependents")).to_contain_text("no later checkpoint, no run, 0 completions")
    page.locator("#checkpoint-delete-do").click()
    expect(page.locator("#checkpoint-said")).to_contain_text(f"Type {REWARD} to confirm")
    page.locator("#checkpoint-confirm textarea, #checkpoint-confirm input").fill(REWARD)
    page.locator("#checkpoint-delete-do").click()
    expect(page.locator("#checkpoint-said")).to_contain_text("its name stays")
    expect(page.locator("#checkpoint-head")).to_contain_text("only its name is left")
    assert checkpoints.choices(workspace, ["reward"]) == []
    kept = json.loads((app.workspace / "runs" / "0001-reward" / "config.json").read_text())
    assert kept["base_model"] == app.base_model  # the run and its data stay
    workspace.store.close()

    page.reload()
    page.locator("#tab-rank").wait_for()
    open_tab(page, "Checkpoints")
    expect(nodes).to_have_count(3)
    expect(page.locator("#checkpoints-table")).to_contain_text("from elsewhere")


def test_on_a_phone(app: App, phone: Page) -> None:
    phone.goto(app.url)
    phone.locator("#tab-rank").wait_for()
    open_tab(phone, "Checkpoints")
    expect(phone.locator("#checkpoints-graph g[data-checkpoint]").first).to_be_visible()
    phone.locator("#checkpoints-graph g[data-checkpoint]").first.tap()
    expect(phone.locator("#checkpoint-head h3")).to_have_text("base tiny")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
