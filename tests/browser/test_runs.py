"""One run's page and several runs compared, in a real browser: what is smoothed, chosen and downloaded."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from labeler import new_jobs
from labeler.users import local_owner
from labeler.workspace import Workspace, open_workspace
from tests.browser.conftest import App, seed_rows
from tests.browser.test_loop import open_tab

HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{alert(3)}}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    """An app with two DPO runs that are over, with curves and sample texts; no model is ever loaded."""
    app = App(tmp_path_factory.mktemp("app") / "workspace", "no-model")
    app.import_rows([row | {"ranks": [1, 2, 3, None]} for row in seed_rows(4)])
    workspace = open_workspace(app.workspace, app.base_model, seed_file=None)
    for learning_rate in (5e-5, 1e-4):
        add_run(workspace, learning_rate)
    workspace.store.close()
    try:
        app.start()
        yield app
    finally:
        app.stop()


def add_run(workspace: Workspace, learning_rate: float) -> None:
    """A run as the trainer would leave it behind; no process is started."""
    run_id = new_jobs.create(
        workspace, local_owner(workspace.store), "dpo", {"learning_rate": learning_rate, "max_steps": 40}
    )
    with workspace.store.write() as db:
        db.execute("UPDATE jobs SET state = 'finished', finished_at = ? WHERE id = ?", [time.time(), run_id])
    folder: Path = workspace.runs_folder / run_id
    rows = [
        {"step": step, "time": 1.0, "loss": 0.69 - learning_rate * 1000 * step / 10 + 0.01 * (step % 2),
         "rewards/chosen": -0.05 * step, "rewards/rejected": -0.1 * step, "rewards/margins": 0.05 * step}
        for step in range(1, 41)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [
        {"step": step, "number": 0, "prompt": [{"role": "user", "content": "How are you?"}], "seed": 0,
         "completion": f"At {step}: {HOSTILE}", "num_tokens": 5, "finish_reason": "stop"}
        for step in (0, 20, 40)
    ]  # fmt: skip
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))


def test_a_run_is_read_smoothed_and_its_texts_compared(finished: App, page: Page) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    open_tab(page, finished, "Runs")
    expect(page.locator(".puzzles:visible")).to_contain_text("The reward of chosen answers falls")
    expect(page.locator(".curves .now-good:visible").first).to_be_visible()
    loss = page.locator("figure:visible", has_text="nats per comparison")
    expect(loss.locator("polyline.smooth")).to_have_count(0)
    slider = page.locator(".smoothing input:visible")
    slider.focus()
    page.keyboard.press("End")
    expect(page.locator(".smoothing output:visible")).to_have_text("0.98")
    expect(loss.locator("polyline.smooth")).to_have_count(1)
    lengths = [loss.locator(f"polyline.{kind}").evaluate("line => line.getTotalLength()") for kind in ("raw", "smooth")]
    assert lengths[1] < lengths[0], "the zigzag is gone"

    cells = page.locator(".samples .side:visible")
    expect(cells).to_have_count(2)
    expect(cells.locator(".answer")).to_have_text([f"At 0: {HOSTILE}", f"At 40: {HOSTILE}"])
    page.locator(".samples select[data-side=left]:visible").select_option("40")
    page.locator(".samples select[data-side=right]:visible").select_option("20")
    expect(page.locator(".samples .side:visible")).to_have_count(2)
    page.reload()
    open_tab(page, finished, "Runs")
    expect(page.locator(".smoothing output:visible")).to_have_text("0.98")


def test_a_look_at_what_is_shown_brings_nothing(finished: App, page: Page) -> None:
    """The page says what it shows, so that the curves of a run that is over are sent once."""
    bodies: list[str] = []
    open_tab(page, finished, "Runs")
    expect(page.locator(".run-head:visible")).to_be_visible()
    page.wait_for_timeout(1500)
    page.on("response", lambda answer: bodies.append(answer.text()) if "/run/" in answer.url else None)
    page.wait_for_timeout(5000)
    assert bodies
    assert not any("polyline" in body or "run-head" in body for body in bodies)


def test_two_runs_are_compared_and_downloaded(finished: App, page: Page, tmp_path: Path) -> None:
    open_tab(page, finished, "Runs")
    expect(page.locator(".run-head:visible")).to_be_visible()
    page.get_by_role("button", name="Compare runs").click()
    expect(page.locator("#compare-tables")).to_contain_text("Choose two to six runs")
    for label in ("dpo/0001", "dpo/0002"):
        page.locator("#compare-runs input").click()
        page.get_by_role("option", name=label).click()
    tables = page.locator("#compare-tables")
    expect(tables).to_contain_text("learning_rate")
    expect(tables).not_to_contain_text("lora_rank")
    expect(page.locator("#compare-curves polyline.line")).to_have_count(2)
    with page.expect_download() as download:
        tables.get_by_role("link", name="Download CSV").click()
    rows = list(csv.DictReader(Path(download.value.path()).read_text().splitlines()))
    assert len(rows) == 80
    assert {row["run"] for row in rows} == {"0001-dpo", "0002-dpo"}
    with page.expect_download() as download:
        tables.get_by_role("link", name="Download PNG").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_a_run_on_a_phone(finished: App, phone: Page) -> None:
    phone.goto(finished.url)
    phone.locator(".overflow-menu > button").click()
    phone.locator(".overflow-dropdown button", has_text="Runs").click()
    expect(phone.locator(".samples .side:visible")).to_have_count(2)
    left, right = (phone.locator(".samples .side:visible").nth(place).bounding_box() for place in (0, 1))
    assert left is not None
    assert right is not None
    assert left["y"] + left["height"] <= right["y"], "one above the other"
    assert phone.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
