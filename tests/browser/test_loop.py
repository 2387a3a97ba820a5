"""The loop in a real browser: rank, train a reward model and DPO on that, talk to the checkpoint, vote on it; and
nothing is lost when the app or the run is killed on the way. A tiny model, the real code."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Locator, Page, expect

from data.preferences import file_sha256
from tests.browser.conftest import App, MakeApp, seed_rows
from tests.browser.ranking import open_rank, prompt, rank_three_tasks, stored
from tests.labeler.studio import wait_for

RUN_MS = 120_000
"""A tiny run takes seconds, most of them for loading; a busy machine may need more."""


@pytest.fixture(scope="module")
def ranked(make_app: MakeApp) -> App:
    """An app with twelve rankings out of a file, for the tests that are about what comes after ranking."""
    return make_app([row | {"ranks": [1, 2, 3, None]} for row in seed_rows(12)])


def open_tab(page: Page, app: App, name: str) -> None:
    if not page.url.startswith(app.url):
        page.goto(app.url)
    page.get_by_role("tab", name=name, exact=True).click()


def start_run(page: Page, method: str, **knobs: object) -> None:
    """Fill the form as a person does and press Start."""
    page.locator(f'#train-method input[value="{method}"]').check()
    form = page.locator(f"#form-{method}")
    expect(form).to_be_visible()
    more = form.get_by_role("button", name=re.compile("More settings"))
    for name, value in knobs.items():
        field = form.locator(f".knob-{name} input")
        if not field.is_visible():
            more.click()
            expect(field).to_be_visible()
            page.wait_for_timeout(500)  # a field that is just made still gets its first value
        field.fill(str(value))
        field.blur()
    for name, value in knobs.items():
        expect(form.locator(f".knob-{name} input")).to_have_value(str(value))
    page.locator("#train-start").click()


def head(page: Page, state: str, method: str) -> Locator:
    """The heading of the shown run, once it is in that state."""
    return page.locator(f'.run-head[data-state="{state}"][data-run$="{method}"]:visible')


def newest_job(app: App) -> dict[str, Any]:
    return app.query("SELECT * FROM jobs ORDER BY id DESC LIMIT 1")[0]


def learned_from(app: App, job: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that the run was given: the file in its configuration is its snapshot, unchanged."""
    (snapshot,) = app.query("SELECT path, sha256 FROM snapshots WHERE id = ?", (job["snapshot_id"],))
    file = app.workspace / snapshot["path"]
    assert json.loads(job["config"])["data"] == str(file)
    assert file_sha256(file) == snapshot["sha256"]
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def points(page: Page) -> int:
    """How many values the first visible plot has drawn."""
    count = "plot => Array.from(plot.querySelectorAll('polyline')).reduce((sum, line) => sum + line.points.length, 0)"
    return int(page.locator(".curves svg:visible").first.evaluate(count))


def unfold(page: Page, title: str) -> None:
    page.locator("button.label-wrap", has_text=title).locator("visible=true").click()


def test_rank_train_chat_compare(make_app: MakeApp, page: Page) -> None:
    app = make_app(seed_rows(4))

    # three rankings made on the page outlive a reload, and SQLite holds them and no others
    open_rank(page, app)
    said = rank_three_tasks(page)
    page.reload()
    expect(page.locator(".progress-text")).to_contain_text("3 of 4 · 3 today")
    assert prompt(page) not in said
    events = app.query("SELECT uuid, kind, source FROM events ORDER BY id")
    assert [(event["kind"], event["source"]) for event in events] == [("submit", "task")] * 3
    assert {question: stored(app, question) for question in said} == said

    open_tab(page, app, "Train")
    # four answers in order give six comparisons, twice; two that tie and one above them give three
    expect(page.locator("#train-data")).to_contain_text("15 comparisons")
    expect(page.locator("#train-data")).to_contain_text("3 prompts")
    expect(page.locator("#train-data")).to_contain_text("10% held out by prompt")

    # a reward model learns from all three, and its curve moves
    start_run(page, "reward", max_steps=40, validation_fraction=0)
    expect(page.locator("#train-data")).to_contain_text("nothing held out")
    expect(page.locator(".curves svg:visible").first).to_be_visible(timeout=RUN_MS)
    seen = points(page)
    wait_for(lambda: points(page) > seen, 120)
    expect(head(page, "finished", "reward")).to_be_visible(timeout=RUN_MS)
    expect(head(page, "finished", "reward")).to_contain_text("learns from 15 comparisons")
    expect(page.locator("pre.command:visible")).to_have_count(0)
    unfold(page, "Command line and configuration")
    expect(page.locator("pre.command:visible")).to_contain_text(f"-m training reward --config {app.workspace}")
    reward = newest_job(app)

    # DPO on the same rankings: what both runs were given is what was said on the page, and nothing else
    start_run(page, "dpo", max_steps=5, validation_fraction=0)
    expect(head(page, "finished", "dpo")).to_be_visible(timeout=RUN_MS)
    dpo = newest_job(app)
    assert (dpo["method"], json.loads(dpo["config"])["max_steps"]) == ("dpo", 5)
    for job in (reward, dpo):
        rows = learned_from(app, job)
        assert [row["event"] for row in rows] == [event["uuid"] for event in events]
        given = {row["prompt"][-1]["content"]: dict(zip(row["completions"], row["ranks"], strict=True)) for row in rows}
        assert given == said
    unfold(page, "Log")
    expect(page.locator(".log:visible")).to_contain_text("3 rankings")
    name = "dpo/0002 step 5"

    # its checkpoint answers in Chat, growing
    open_tab(page, app, "Chat")
    page.locator("#chat-checkpoint").select_option(label=name)
    page.locator("#chat-box textarea").fill("What is a good name for a cat?")
    page.locator("#chat-box textarea").press("Enter")
    expect(page.locator("#chat-stop")).to_be_visible()
    answer = page.locator("#chat-log .bot.message").last
    expect(answer).not_to_be_empty(timeout=RUN_MS)
    lengths = []
    while page.locator("#chat-stop").is_visible():
        lengths.append(len(answer.inner_text()))
    expect(answer.locator(".facts")).to_contain_text(re.compile(rf"{re.escape(name)} · seed 0 · \d+ tokens"))
    assert len(set(lengths)) >= 3, f"the answer did not grow: {lengths}"
    assert lengths[0] < lengths[-1]

    # compare it blindly with the base; the vote is in SQLite before the names are shown
    open_tab(page, app, "Compare")
    expect(page.locator("#compare-models")).to_contain_text(name)
    page.locator("#compare-prompt textarea").fill("What is a good name for a dog?")
    page.locator("#compare-run").click()
    expect(page.locator("#compare-votes")).to_be_visible(timeout=RUN_MS)
    assert page.locator("#compare-sides .name").count() == 0
    assert name not in page.locator("#compare-sides").inner_html()
    answers = page.locator("#compare-sides .answer").all_inner_texts()
    page.get_by_role("button", name="B better").click()
    expect(page.locator("#compare-sides .name")).to_have_count(2)
    (event,) = app.query("SELECT * FROM events WHERE source = 'compare'")
    payload = json.loads(event["payload"])
    assert payload["ranks"] == [2, 1]
    shown = {row["id"]: row for row in app.query("SELECT * FROM completions WHERE source = 'compare'")}
    names = {row["id"]: row["name"] for row in app.query("SELECT id, name FROM checkpoints")}
    in_order = [names[shown[i]["checkpoint_id"]] for i in payload["completion_ids"]]
    expect(page.locator("#compare-sides .name")).to_have_text(in_order)
    assert all(answers), answers
    assert {json.loads(row["sampling"])["seed"] for row in shown.values()} == {0}

    # and everything is in Runs
    open_tab(page, app, "Runs")
    expect(page.locator("#runs-table tbody tr")).to_have_count(2)
    page.locator('tr[data-run="0001-reward"]').click()
    expect(head(page, "finished", "reward")).to_be_visible()
    expect(page.locator(".checkpoints:visible")).to_contain_text("reward/0001 step 40")


def test_time_and_memory_appear_as_soon_as_the_machine_is_measured(ranked: App, page: Page) -> None:
    open_tab(page, ranked, "Train")
    expect(page.locator("#train-takes")).to_contain_text("measuring this machine's speed")
    expect(page.locator("#train-takes")).to_contain_text("of memory", timeout=RUN_MS)
    expect(page.locator("#train-takes")).not_to_contain_text("measuring")


def test_the_run_outlives_the_app_and_can_be_killed_and_resumed(ranked: App, page: Page) -> None:
    open_tab(page, ranked, "Train")
    start_run(page, "dpo", max_steps=100_000, save_every=5, eval_every=50_000)
    expect(head(page, "running", "dpo")).to_be_visible(timeout=RUN_MS)
    expect(page.locator(".curves svg:visible").first).to_be_visible(timeout=RUN_MS)
    job = newest_job(ranked)
    folder = ranked.workspace / "runs" / job["id"]
    wait_for(lambda: list((folder / "checkpoints").glob("step-*")), 120)
    run = psutil.Process(job["pid"])

    # the app dies; the run does not, and after a restart the page shows it
    ranked.kill()
    lines = count_lines(folder)
    wait_for(lambda: count_lines(folder) > lines, 60)
    ranked.start()
    page.goto(ranked.url)
    open_tab(page, ranked, "Train")
    expect(head(page, "running", "dpo")).to_be_visible(timeout=RUN_MS)
    seen = points(page)
    wait_for(lambda: points(page) != seen, 60)
    job = newest_job(ranked)
    assert (job["state"], job["pid"]) == ("running", run.pid)

    # the run dies; it is shown as interrupted, with its log
    os.kill(run.pid, signal.SIGKILL)
    expect(head(page, "interrupted", "dpo")).to_be_visible(timeout=RUN_MS)
    expect(page.locator(".run-head .notice:visible")).to_contain_text("Resume goes on")
    unfold(page, "Log")
    expect(page.locator(".log:visible")).to_contain_text(re.compile(r"step \d+/100000"))
    saved = ranked.query("SELECT max(step) AS step FROM checkpoints WHERE run_id = ?", (job["id"],))[0]["step"]
    assert saved >= 5

    # Resume goes on from the newest checkpoint, and Stop saves another one
    page.get_by_role("button", name="Resume", exact=True).locator("visible=true").click()
    expect(head(page, "running", "dpo")).to_be_visible(timeout=RUN_MS)
    expect(page.locator(".log:visible")).to_contain_text("resuming after step", timeout=RUN_MS)
    newest = "SELECT max(step) AS step FROM checkpoints WHERE run_id = ?"
    wait_for(lambda: ranked.query(newest, (job["id"],))[0]["step"] > saved, 120)
    page.get_by_role("button", name="Stop and save").locator("visible=true").click()
    expect(head(page, "stopped", "dpo")).to_be_visible(timeout=RUN_MS)
    assert newest_job(ranked)["error"] is None


def count_lines(folder: Path) -> int:
    return (folder / "metrics.jsonl").read_bytes().count(b"\n")


def test_a_reload_finds_the_running_run_and_a_second_one_waits(ranked: App, page: Page) -> None:
    open_tab(page, ranked, "Train")
    start_run(page, "reward", max_steps=100_000, eval_every=50_000)
    expect(head(page, "running", "reward")).to_be_visible(timeout=RUN_MS)
    page.reload()
    open_tab(page, ranked, "Train")
    expect(head(page, "running", "reward")).to_be_visible(timeout=RUN_MS)
    expect(page.locator("#train-start")).to_be_enabled()
    start_run(page, "sft", max_steps=2)
    expect(page.locator("#train-waiting")).to_contain_text("Waiting behind it: sft/", timeout=RUN_MS)
    page.get_by_role("button", name="Stop and save").locator("visible=true").click()
    expect(head(page, "finished", "sft")).to_be_visible(timeout=RUN_MS)
    states = {row["method"]: row["state"] for row in ranked.query("SELECT method, state FROM jobs ORDER BY id")}
    assert (states["reward"], states["sft"]) == ("stopped", "finished")


def test_what_is_wrong_is_said_beside_the_form(make_app: MakeApp, page: Page) -> None:
    app = make_app(seed_rows(2))
    open_tab(page, app, "Train")
    expect(page.locator("#train-data")).to_contain_text("nothing to learn from yet")
    start_run(page, "reward", learning_rate=5)
    expect(page.locator("#train-problem")).to_contain_text("Learning rate must be at most 1")
    start_run(page, "reward", learning_rate=0.001)
    expect(page.locator("#train-problem")).to_contain_text("no rankings to learn from yet")
    page.locator('#train-method input[value="ppo"]').check()
    expect(page.locator("#train-reward")).to_contain_text("train a reward model first")
    assert app.query("SELECT * FROM jobs") == []
    open_tab(page, app, "Runs")
    expect(page.locator("#runs-table")).to_contain_text("No run yet")
    open_tab(page, app, "Compare")
    expect(page.locator("#compare-problem")).to_contain_text("only the base model")


def test_chat_stops_and_shows_hostile_text_as_text(ranked: App, page: Page) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    open_tab(page, ranked, "Chat")
    page.locator("#chat-settings > summary").click()
    longest = page.locator("#chat-settings").get_by_label("Maximum length")
    longest.fill("1900")
    box = page.locator("#chat-box textarea")
    box.fill("<img src=x onerror=alert(1)><script>alert(2)</script> ${alert(3)} {{alert(4)}} [x](javascript:alert(5))")
    box.press("Enter")
    # stopped before its first word, an answer would leave nothing
    expect(page.locator("#chat-log .bot.message .markdown").last).not_to_be_empty(timeout=RUN_MS)
    expect(page.locator("#chat-stop")).to_be_visible()
    page.locator("#chat-stop").click()
    expect(page.locator("#chat-send")).to_be_visible(timeout=RUN_MS)
    expect(page.locator("#chat-log .bot .facts").last).to_contain_text("stopped")
    question = page.locator("#chat-log .user.message").last
    expect(question).to_contain_text("<img src=x onerror=alert(1)>")
    expect(question).to_contain_text("${alert(3)} {{alert(4)}}")
    assert question.locator("img, script, a[href^=javascript]").count() == 0

    # too long for the model: said, and the text is not lost
    long = "word " * 3000
    box.fill(long)
    page.locator("#chat-send").click()
    expect(page.locator("#chat-status")).to_contain_text("has reached the 2048 tokens", timeout=RUN_MS)
    expect(box).to_have_value(long)
