"""The active order in a real browser: asked for, waited for, told; at both widths."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from labeler.store import rows
from labeler.worker import Worker
from labeler.workspace import Workspace, open_workspace
from tests.labeler.labels import make_workspace, rank
from tests.labeler.studio import untrained_reward_model

HOSTILE = "<img src=x onerror='window.hacked = 1'>"


@pytest.fixture
def workspace(tmp_path: Path, tiny_model: Path) -> Workspace:
    made = open_workspace(make_workspace(tmp_path, 5).folder, str(tiny_model), seed_file=None)
    rank(made, [1, 2, 3, 4])
    with made.store.write() as db:
        db.execute("UPDATE prompts SET messages = replace(messages, 'Question', ?)", [HOSTILE])
    return made


@pytest.fixture
def url(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The app with this section as its only tab, whichever tab it has elsewhere."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import uvicorn

    from app import listen
    from labeler import ui
    from labeler.ui import selection
    from labeler.web import create_app

    monkeypatch.setattr(ui, "TABS", (("Active", selection.build),))
    listener = listen("127.0.0.1", "0")
    server = uvicorn.Server(uvicorn.Config(create_app(workspace), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.02)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_tasks_are_ordered(workspace: Workspace, url: str, page: Page) -> None:
    page.goto(url)
    start = page.get_by_role("button", name="Order the open tasks")
    expect(page.locator("#select-problem")).to_contain_text("There is no reward model yet: train one in Train")
    expect(page.locator("#select-state")).to_contain_text("have not been ordered yet")
    expect(start).to_be_disabled()
    untrained_reward_model(workspace)
    page.reload()
    expect(page.get_by_label("Reward model")).to_have_value("reward/0001 step 1")
    start.click()
    expect(page.locator("#select-state")).to_contain_text("Waits until the run before it is done")
    expect(start).to_be_disabled()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#select-state")).to_contain_text("select/0002 stopped.")
    start.click()
    worker = Worker(workspace, poll_seconds=0.05)
    worker.start()
    try:
        told = page.locator("#select-state")
        expect(told).to_contain_text(
            "4 tasks of First project ordered by 8 heads of reward/0001 step 1", timeout=90_000
        )
    finally:
        worker.stop()
    expect(told).to_contain_text(f"the least sure: “{HOSTILE}")
    assert page.evaluate("window.hacked") is None
    found = rows(workspace.store.db, "SELECT id FROM tasks WHERE priority > 0 AND provenance LIKE '%ensemble%'")
    assert len(found) == 4


def test_it_fits_a_phone(workspace: Workspace, url: str, phone: Page) -> None:
    untrained_reward_model(workspace)
    phone.goto(url)
    expect(phone.get_by_label("Reward model")).to_have_value("reward/0001 step 1")
    button = phone.get_by_role("button", name="Order the open tasks").bounding_box()
    assert button is not None
    assert button["height"] >= 40
    assert button["x"] + button["width"] <= 390
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
