"""The queue by clicks: a recipe is queued, put into another order, cancelled in part, and its settings are changed."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect

from labeler import jobs, new_jobs
from labeler.users import local_owner
from labeler.workspace import open_workspace
from tests.browser.conftest import App, MakeApp, seed_rows
from tests.browser.test_loop import RUN_MS, head, open_tab
from tests.labeler.studio import wait_for

LONG = {"max_steps": 100_000, "eval_every": 50_000, "lora_rank": 2}


def waiting(page: Page) -> Locator:
    return page.locator("#train-queue ol .queue-run b")


def press(page: Page, name: str) -> None:
    page.locator("#train-queue").get_by_role("button", name=name, exact=True).click()


def states(app: App) -> dict[str, str]:
    return {row["id"]: row["state"] for row in app.query("SELECT id, state FROM jobs ORDER BY id")}


def test_a_recipe_by_clicks_and_the_queue_in_another_order(make_app: MakeApp, page: Page) -> None:
    app = make_app([row | {"ranks": [1, 2, 3, None]} for row in seed_rows(4)])
    workspace = open_workspace(app.workspace, app.base_model, seed_file=None)
    first = new_jobs.create(workspace, local_owner(workspace.store), "sft", LONG)
    wait_for(lambda: states(app)[first] == "running")

    # one click, three runs; a double click is one click
    open_tab(page, app, "Train")
    page.get_by_role("button", name="Start SFT → reward model → PPO").dblclick()
    expect(page.locator("#train-recipe-said")).to_contain_text("Queued sft/0002, then reward/0003, then ppo/0004")
    expect(waiting(page)).to_have_text(["sft/0002", "reward/0003", "ppo/0004"])
    expect(page.locator("#train-queue")).to_contain_text("waits for sft/0002 and reward/0003")
    assert len(states(app)) == 4

    # another order
    press(page, "Move reward/0003 up")
    expect(waiting(page)).to_have_text(["reward/0003", "sft/0002", "ppo/0004"])
    expect(page.get_by_role("button", name="Move reward/0003 down")).to_be_focused()  # it is the first, so not up
    press(page, "Move ppo/0004 up")
    expect(page.locator("#train-queue-said")).to_contain_text("ppo/0004 needs sft/0002, so it stays behind it")
    press(page, "Move sft/0002 up")
    expect(waiting(page)).to_have_text(["sft/0002", "reward/0003", "ppo/0004"])
    press(page, "Move sft/0002 down")
    expect(waiting(page)).to_have_text(["reward/0003", "sft/0002", "ppo/0004"])

    # without its reward model PPO cannot be; with it, it is back
    press(page, "Cancel reward/0003")
    expect(waiting(page)).to_have_text(["sft/0002"])
    ended = page.locator("#train-queue ul")
    expect(ended).to_contain_text("cancelled, since reward/0003 was stopped")
    press(page, "Resume reward/0003")
    expect(waiting(page)).to_have_text(["sft/0002", "reward/0003", "ppo/0004"])
    press(page, "Cancel reward/0003")
    press(page, "Try reward/0003 anew")
    expect(page.locator("#train-queue-said")).to_contain_text("Added reward/0005")
    expect(waiting(page)).to_have_text(["sft/0002", "reward/0005", "ppo/0004"])
    expect(page.locator("#train-queue")).to_contain_text("waits for sft/0002 and reward/0005")

    # a reload shows the same; a run's settings come back into the form to be changed
    page.reload()
    open_tab(page, app, "Train")
    expect(waiting(page)).to_have_text(["sft/0002", "reward/0005", "ppo/0004"])
    press(page, "Cancel ppo/0004")
    press(page, "Cancel reward/0005")
    press(page, "Cancel sft/0002")
    expect(page.locator("#train-queue ol")).to_have_count(0)
    page.get_by_role("button", name="Stop and save").locator("visible=true").click()
    expect(head(page, "stopped", "sft")).to_be_visible(timeout=RUN_MS)
    press(page, "Copy the settings of sft/0001 into the form")
    expect(page.locator("#train-queue-said")).to_contain_text("The form holds the settings of sft/0001")
    form = page.locator("#form-sft")
    expect(form).to_be_visible()
    expect(form.locator(".knob-max_steps input")).to_have_value("100000")
    field = form.locator(".knob-max_steps input")
    field.fill("2")
    field.blur()
    page.locator("#train-start").click()
    expect(head(page, "finished", "sft")).to_be_visible(timeout=RUN_MS)
    job = jobs.list_jobs(workspace.store)[0]
    assert (job.id, job.config["max_steps"], job.config["lora_rank"]) == ("0006-sft", 2, 2)
    assert states(app) == {
        "0001-sft": "stopped",
        "0002-sft": "stopped",
        "0003-reward": "stopped",
        "0004-ppo": "stopped",
        "0005-reward": "stopped",
        "0006-sft": "finished",
    }
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_an_annotator_s_request_changes_nothing(make_app: MakeApp, page: Page) -> None:
    """Hiding a tab is no access control: its buttons do nothing for whoever may not train."""
    app = make_app([row | {"ranks": [1, 2, 3, None]} for row in seed_rows(2)])
    workspace = open_workspace(app.workspace, app.base_model, seed_file=None)
    with workspace.store.write() as db:
        db.execute("UPDATE users SET role = 'annotator'")
    page.goto(app.url)
    page.evaluate("document.querySelectorAll('[hidden], [style*=none]').forEach(each => each.hidden = false)")
    page.locator("#tab-train-button").evaluate("tab => tab.click()")  # it is hidden
    page.locator("[data-recipe=reward-dpo]").evaluate("button => button.click()")
    expect(page.locator("#train-recipe-said")).to_contain_text("may not start or stop runs")
    assert states(app) == {}
