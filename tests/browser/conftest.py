"""The real app as a process of its own, and a real Chromium to look at it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from labeler.imports import import_file
from labeler.users import local_owner
from labeler.workspace import DATABASE_NAME, open_workspace

PROJECT = Path(__file__).resolve().parents[2]
START_SECONDS = 60
PATIENCE_MS = 60_000
"""What a page may take where other tests keep the machine busy: no test judges speed."""
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ANSWERS = [
    "Go to bed at the same hour every day, also at weekends.",
    "Get up, sit somewhere dim, and return when you are sleepy.",
    "Drink three cups of coffee and hope for the best.",
    "I cannot say anything about that.",
]


def seed_rows(count: int, answers: list[str] = ANSWERS) -> list[dict[str, Any]]:
    """Tasks with the same answers to different questions; each answer says which question it belongs to."""
    return [
        {
            "id": f"sleep-{number:03}",
            "category": "advice",
            "prompt": [{"role": "user", "content": f"Question {number}: how do I sleep better?"}],
            "completions": [f"{answer} (answer to {number})" for answer in answers],
        }
        for number in range(1, count + 1)
    ]


class App:
    """`python app.py` on a free port, with a workspace of its own."""

    def __init__(self, workspace: Path, base_model: str, env: dict[str, str] | None = None) -> None:
        self.workspace = workspace
        self.base_model = base_model
        self.env = env or {}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.database = workspace / DATABASE_NAME
        self.log = workspace.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None

    def import_rows(self, rows: list[dict[str, Any]]) -> None:
        """Put rows of a data file into the workspace, also while the app runs."""
        file = self.workspace.with_suffix(".jsonl")
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        workspace = open_workspace(self.workspace, self.base_model, seed_file=None)
        import_file(workspace.store, file, local_owner(workspace.store))
        workspace.store.close()

    def start(self) -> None:
        """Start, and wait until the page can be opened."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"],
                cwd=PROJECT,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "HOST": "127.0.0.1",
                    "PORT": str(self.port),
                    "WORKSPACE": str(self.workspace),
                    "BASE_MODEL": self.base_model,
                    **self.env,
                },
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(f"{self.url}/healthz", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise AssertionError(f"the app did not start:\n{self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        """SIGKILL: no chance to clean up."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: the way it is meant to end."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError("the app did not end within 20 seconds of SIGTERM") from None

    def restart(self) -> None:
        """Start again after `kill` or `stop` (or stop first), on the same port and workspace."""
        self.stop()
        self.start()

    def end_runs(self) -> None:
        """Kill the training runs of this workspace, which outlive the app."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "training" in words and any(str(self.workspace) in word for word in words):
                process.kill()

    def query(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[dict[str, Any]]:
        """Rows read with plain sqlite3, past all code of ours."""
        connection = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(sql, parameters)]
        finally:
            connection.close()


MakeApp = Callable[..., App]


@pytest.fixture(scope="module")
def make_app(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[MakeApp]:
    """make_app(rows, env) starts an app whose workspace holds these rows; all are stopped after the module, and their
    training runs with them."""
    started: list[App] = []

    def make(rows: list[dict[str, Any]], env: dict[str, str] | None = None) -> App:
        app = App(tmp_path_factory.mktemp("app") / "workspace", str(tiny_model), env)
        app.import_rows(rows)
        started.append(app)
        app.start()
        return app

    yield make
    for app in started:
        app.end_runs()
        app.stop()


@pytest.fixture(scope="module")
def app(make_app: MakeApp) -> App:
    """An app with forty tasks, shared by the tests of a module."""
    return make_app(seed_rows(40))


def chromium_path() -> str:
    """Where Chromium is. Skips the test where there is none; in CI that is a failure."""
    for name in (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name) if name else None
        if found:
            return found
    reason = "no Chromium: install it (apt install chromium) or set CHROMIUM to its path"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = chromium_path()
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """An empty page that fails the test where a script of ours threw."""
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    assert not errors, errors


@pytest.fixture
def phone(browser: Browser) -> Iterator[Page]:
    """A page on a small touch screen."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    context.set_default_timeout(PATIENCE_MS)
    yield context.new_page()
    context.close()
