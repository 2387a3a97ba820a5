"""A whole round by clicks alone: import prompts, sample, rank as two people, SFT, reward model and PPO by a recipe,
read what the policy says, vote blindly, see the standings, and open the next round. A tiny model, the real code."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from labeler.users import add_user
from tests.browser.conftest import App, MakeApp, seed_rows
from tests.browser.ranking import press, prompt, store_of
from tests.browser.test_loop import RUN_MS, open_tab
from tests.browser.test_rank_projects import log_in
from tests.labeler.studio import wait_for

PROMPTS = [{"prompt": f"Question {number}: what is a good name for a cat?"} for number in range(6)]


def states(app: App) -> list[tuple[str, str]]:
    return [(row["method"], row["state"]) for row in app.query("SELECT method, state FROM jobs ORDER BY id")]


def finished(app: App, *methods: str) -> None:
    """Wait until exactly these runs are done."""
    wait_for(lambda: [one for one in states(app) if one[1] in ("queued", "running")] == [], 300)
    assert states(app) == [(method, "finished") for method in methods], app.query("SELECT id, error FROM jobs")


def rank_all(page: Page, project: str, count: int) -> None:
    """Rank that many tasks of a project, the first card best."""
    page.reload()
    page.locator("#rank").get_by_label("Project", exact=True).select_option(label=project)
    for _ in range(count):
        expect(page.locator(".card").first).to_be_visible()
        before = prompt(page)
        cards = page.locator(".card").count()
        page.locator(".card").first.focus()
        press(page, " ".join(str(number) for number in range(1, cards + 1)))
        page.keyboard.press("Control+Enter")
        last = page.locator(".prompt .turn-text").last
        expect(last.and_(page.get_by_text(before, exact=True))).to_have_count(0)


def test_a_whole_round(make_app: MakeApp, page: Page, browser: Browser, tmp_path: Path) -> None:
    app = make_app(seed_rows(1))  # an app begins with something to rank
    with store_of(app) as store:
        add_user(store, "ann", "annotator", "ann's long password")
        add_user(store, "boss", "owner", "boss's long password")
    ann = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    for who, name in ((page, "boss"), (ann, "ann")):
        log_in(who, app, name, f"{name}'s long password")

    # import prompts, and let the base answer each of them three times
    open_tab(page, app, "Data")
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS), encoding="utf-8")
    page.locator("#data-import input[type=file]").set_input_files(file)
    expect(page.locator("#data-preview")).to_contain_text("prompts.jsonl")
    page.locator("#data-import-start").click()
    expect(page.locator("#data-imported")).to_contain_text("added 6 prompts")
    open_tab(page, app, "Compare")
    page.locator("#tab-compare button.label-wrap", has_text="Settings").click()
    longest = page.get_by_label("Maximum length").locator("visible=true")
    expect(longest).to_be_visible()
    page.wait_for_timeout(500)  # a field that is just made still gets its first value
    longest.fill("8")
    longest.blur()
    page.locator("#compare-batch button.label-wrap").click()
    expect(page.locator("#batch-create")).to_be_visible()
    page.wait_for_timeout(500)
    page.locator("#batch-name input, #batch-name textarea").fill("First")
    page.locator("#batch-each input").fill("3")
    page.locator("#batch-each input").blur()
    page.locator("#batch-create").click()
    expect(page.locator("#batch-told")).to_contain_text("is queued")
    finished(app, "sample")
    assert app.query("SELECT count(*) AS n FROM tasks WHERE source = 'sample'") == [{"n": 7}]

    # two people rank, each in a browser of their own
    rank_all(page, "First", 3)
    rank_all(ann, "First", 3)
    ann.context.close()
    assert app.query("SELECT count(*) AS n FROM latest_rankings GROUP BY user_id") == [{"n": 3}] * 2

    # one click: SFT, then a reward model, then PPO from one with the other
    open_tab(page, app, "Train")
    page.get_by_role("button", name="Start SFT → reward model → PPO").click()
    expect(page.locator("#train-recipe-said")).to_contain_text("Queued")
    finished(app, "sample", "sft", "reward", "ppo")

    # what the policy says before and after stands side by side
    open_tab(page, app, "Runs")
    page.locator('tr[data-run$="-ppo"]').click()
    samples = page.locator(".samples:visible")
    expect(samples.locator("article").first).to_be_visible(timeout=RUN_MS)

    # blind, then a vote, then names and standings
    open_tab(page, app, "Leaderboard")
    expect(page.locator("#leaderboard")).to_contain_text("No blind vote has compared two checkpoints yet")
    open_tab(page, app, "Compare")
    expect(page.locator("#compare-models")).to_contain_text("ppo/")
    page.locator("#compare-prompt textarea").fill("What is a good name for a dog?")
    page.locator("#compare-run").click()
    expect(page.locator("#compare-votes")).to_be_visible(timeout=RUN_MS)
    page.get_by_role("button", name="A better").click()
    expect(page.locator("#compare-sides .name")).to_have_count(2)
    open_tab(page, app, "Leaderboard")
    expect(page.locator("#leaderboard svg.interval").first).to_be_visible()
    expect(page.locator("#leaderboard")).to_contain_text("ppo/")

    # the round stands in Rounds, and the next one opens a project with tasks of the new policy
    open_tab(page, app, "Rounds")
    row = page.locator("#rounds-table tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("ppo/")
    expect(row).to_contain_text("6")
    expect(page.locator("#rounds-models")).to_contain_text("against sft/")
    page.locator("#rounds-longest input").fill("8")
    page.locator("#rounds-longest input").blur()
    page.locator("#rounds-start").click()
    expect(page.locator("#rounds-said")).to_contain_text("is queued: 7 prompts")
    finished(app, "sample", "sft", "reward", "ppo", "sample")
    found = app.query(
        """SELECT DISTINCT c.name FROM tasks AS t JOIN projects AS p ON p.id = t.project_id
            JOIN task_completions AS tc ON tc.task_id = t.id JOIN completions AS co ON co.id = tc.completion_id
            JOIN checkpoints AS c ON c.id = co.checkpoint_id WHERE p.name = 'Round 1' ORDER BY c.id"""
    )
    assert [row["name"].partition("/")[0] for row in found] == ["sft", "ppo"]
    rank_all(page, "Round 1", 1)
