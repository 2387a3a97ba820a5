"""Goes through docs/tutorial.md in a real browser, takes its pictures, and prints what came out.

    python -m benchmarks.tutorial [--workspace DIR] [--pictures DIR] [--labels 40] [--steps 60] [--votes 30]

The real app on the default model; every step is a click or a key on the page. Whoever ranks prefers the answer with
fewer characters and sees nothing else, in the labels as in the blind votes. Prints one JSON object: seconds of each
part, characters of an answer, votes, and what the Leaderboard says.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.conftest import FLAGS, App, chromium_path
from tests.browser.ranking import press, prompt
from tests.browser.screenshots import SIZES, chat, open_tab
from training.config import DEFAULT_MODEL

RUN_MS = 3_600_000
QUESTION = "How can I make friends in a new city?"
PROJECT = "Blind votes"


def rank(page: Page, count: int) -> None:
    """Rank that many tasks by keys, the answer with the fewest characters best; equal lengths tie."""
    for _ in range(count):
        cards = page.locator(".card")
        expect(cards.first).to_be_visible()
        before = prompt(page)
        lengths = [len(text) for text in cards.locator(".card-text").all_inner_texts()]
        ranks = [1 + sum(other < length for other in lengths) for length in lengths]
        cards.first.focus()
        press(page, " ".join(map(str, ranks)))
        page.keyboard.press("Control+Enter")
        last = page.locator(".prompt .turn-text").last
        expect(last.and_(page.get_by_text(before, exact=True))).to_have_count(0)


def set_field(page: Page, selector: str, value: object) -> None:
    """Type into a field as soon as it has its first value."""
    field = page.locator(selector).locator("visible=true")
    expect(field).to_be_visible()
    page.wait_for_timeout(1000)
    field.fill(str(value))
    field.blur()
    expect(field).to_have_value(str(value))


def last_run_finished(page: Page, app: App) -> dict[str, Any]:
    """Wait until the newest run is done, as somebody who watches the page; its row."""
    deadline = time.monotonic() + RUN_MS / 1000
    while time.monotonic() < deadline:
        job = app.query("SELECT * FROM jobs ORDER BY id DESC LIMIT 1")[0]
        if job["state"] not in ("queued", "running"):
            break
        page.wait_for_timeout(1000)
    if job["state"] != "finished":
        raise SystemExit(f"error: {job['id']} is {job['state']}: {job['error']}")
    return job


def walk(page: Page, app: App, options: argparse.Namespace) -> dict[str, Any]:
    """All steps of the tutorial."""
    found: dict[str, Any] = {}
    began = time.monotonic()

    def done(name: str) -> None:
        nonlocal began
        found[f"{name}_s"], began = round(time.monotonic() - began), time.monotonic()
        print(name, f"{found[f'{name}_s']} s", file=sys.stderr, flush=True)

    def picture(name: str) -> None:
        page.wait_for_timeout(1500)
        page.screenshot(path=options.pictures / f"tutorial-{name}.png")

    page.goto(app.url)
    page.locator(".card").first.wait_for()
    rank(page, options.labels)
    done("label")

    open_tab(page, "Train")
    page.locator('#train-method input[value="dpo"]').check()
    set_field(page, "#form-dpo .knob-max_steps input", options.steps)
    set_field(page, "#form-dpo .knob-learning_rate input", options.learning_rate)
    set_field(page, "#form-dpo .knob-batch_size input", 4)
    expect(page.locator("#train-data")).to_contain_text("memory, ", timeout=120_000)
    found["said_before"] = page.locator("#train-data").inner_text()
    page.locator("#train-method").scroll_into_view_if_needed()
    picture("train")
    done("form")
    page.locator("#train-start").click()
    job = last_run_finished(page, app)
    found["run_s"] = round(job["finished_at"] - job["started_at"])
    found["result"] = json.loads(job["result"] or "{}")
    open_tab(page, "Runs")
    page.locator(f'tr[data-run="{job["id"]}"]').click()
    page.locator(".run-head:visible").first.scroll_into_view_if_needed()
    picture("run")
    done("train")

    chat(page, QUESTION)
    picture("chat")
    done("chat")

    open_tab(page, "Compare")
    expect(page.locator("#compare-models")).to_contain_text("dpo/")
    page.locator("#compare-batch button.label-wrap").click()
    set_field(page, "#batch-name input, #batch-name textarea", PROJECT)
    set_field(page, "#batch-count input", options.votes)
    page.locator("#batch-prompts input").click()
    page.get_by_role("option", name="unranked prompts", exact=True).click()
    page.locator("#batch-create").click()
    expect(page.locator("#batch-told")).to_contain_text("is queued")
    picture("batch")
    last_run_finished(page, app)
    done("sample")

    open_tab(page, "Rank")
    page.reload()
    page.locator("#rank").get_by_label("Project", exact=True).select_option(label=PROJECT)
    expect(page.locator(".card")).to_have_count(2)
    picture("vote")
    rank(page, options.votes)
    open_tab(page, "Leaderboard")
    expect(page.locator("#leaderboard svg.interval").first).to_be_visible(timeout=60_000)
    picture("leaderboard")
    done("vote")
    found["leaderboard"] = page.locator("#leaderboard table").first.inner_text().split("\n")
    answers = app.query(
        """SELECT c.name, length(co.text) AS n, co.prompt_id FROM completions AS co
            JOIN checkpoints AS c ON c.id = co.checkpoint_id WHERE co.source = 'sample'"""
    )
    for name in sorted({row["name"] for row in answers}):
        found[f"characters of {name}"] = round(statistics.mean(row["n"] for row in answers if row["name"] == name))
    found["labelled_before"] = app.query(
        """SELECT count(*) AS n FROM completions AS co WHERE co.source = 'sample' AND EXISTS (SELECT 1 FROM tasks AS t
            JOIN latest_rankings AS r ON r.task_id = t.id WHERE t.prompt_id = co.prompt_id AND t.source != 'sample')"""
    )[0]["n"]
    return found


def main() -> None:
    """Walk, take the pictures, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, help="where; a temporary folder otherwise")
    parser.add_argument("--pictures", type=Path, default=Path("docs/screenshots"))
    parser.add_argument("--base-model", default=DEFAULT_MODEL)
    parser.add_argument("--labels", type=int, default=40, help="rankings of four answers")
    parser.add_argument("--steps", type=int, default=60, help="of DPO")
    parser.add_argument("--learning-rate", default="0.0002", help="of DPO")
    parser.add_argument("--votes", type=int, default=30, help="prompts that nobody has ranked")
    options = parser.parse_args()
    options.pictures.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        app = App((options.workspace or Path(folder) / "workspace").resolve(), options.base_model)
        app.env = {"OMP_NUM_THREADS": str(os.cpu_count())}
        app.start()
        try:
            browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
            page = browser.new_page(viewport=SIZES["wide"])  # type: ignore[arg-type]
            expect.set_options(timeout=60_000)
            found = walk(page, app, options)
            browser.close()
        finally:
            app.end_runs()
            app.stop()
    print(json.dumps(found | {"all_s": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
