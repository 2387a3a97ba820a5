"""Chat by clicks on a tiny model: versions, branches, preferences; and nothing is lost by a reload, a second browser or
a restart in the middle of an answer."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from labeler.workspace import open_workspace
from tests.browser.conftest import App, MakeApp, seed_rows
from tests.browser.test_accessibility import violations
from tests.labeler.studio import untrained_reward_model, wait_for

ANSWER_MS = 60_000
QUESTION = "What is a good name for a cat?"


@pytest.fixture(scope="module")
def app(make_app: MakeApp) -> App:
    app = make_app(seed_rows(1))
    workspace = open_workspace(app.workspace, app.base_model, seed_file=None)
    untrained_reward_model(workspace)
    workspace.store.close()
    return app


def open_chat(page: Page, app: App) -> None:
    page.goto(app.url)
    page.get_by_role("tab", name="Chat", exact=True).click()
    expect(page.locator("#chat-checkpoint option").first).to_be_attached(timeout=ANSWER_MS)


def set_length(page: Page, tokens: int) -> None:
    if page.locator("#chat-settings").get_attribute("open") is None:
        page.locator("#chat-settings > summary").click()
    page.locator("#chat-settings").get_by_label("Maximum length").fill(str(tokens))


def say(page: Page, text: str) -> None:
    page.locator("#chat-box textarea").fill(text)
    page.locator("#chat-box textarea").press("Enter")
    expect(page.locator("#chat-log .user.message").last).to_contain_text(text)


def last_answer(page: Page) -> Locator:
    """The last message, once it is written."""
    expect(page.locator("#chat-send")).to_be_visible(timeout=ANSWER_MS)
    return page.locator("#chat-log .bot.message").last


def test_a_conversation_by_clicks(app: App, page: Page) -> None:
    open_chat(page, app)
    set_length(page, 12)
    say(page, QUESTION)
    answer = last_answer(page)
    expect(answer.locator(".facts")).to_contain_text("seed 0 · 12 tokens")
    expect(answer.locator(".facts")).to_contain_text("first after")
    first = answer.locator(".markdown").inner_text()

    # another version; both can be paged to, and one is better
    answer.get_by_role("button", name="Regenerate").click()
    expect(last_answer(page).locator(".pages")).to_have_text("2 of 2")
    expect(answer.locator(".facts")).to_contain_text("seed 1")
    second = answer.locator(".markdown").inner_text()
    assert second != first
    answer.get_by_role("button", name="Version before").click()
    expect(answer.locator(".markdown")).to_have_text(first)
    answer.locator("summary").click()
    assert violations(page) == []
    answer.get_by_role("button", name="This one is better").click()
    expect(page.locator("#chat-status")).to_contain_text("counts in the next training run")
    expect(answer.locator(".facts")).to_contain_text("better than version 2")
    (event,) = app.query("SELECT * FROM events")
    assert (event["source"], json.loads(event["payload"])["ranks"]) == ("chat", [1, 2])

    # an earlier turn said otherwise is a branch; the first one stays
    say(page, "And for a dog?")
    last_answer(page)
    expect(page.locator("#chat-log .message")).to_have_count(4)
    question = page.locator("#chat-log .user.message").first
    question.get_by_role("button", name="Edit").click()
    question.get_by_role("textbox").fill("What is a good name for a bird?")
    question.get_by_role("button", name="Send in a new branch").click()
    expect(page.locator("#chat-log .message")).to_have_count(2)
    last_answer(page)
    question.get_by_role("button", name="Version before").click()
    expect(page.locator("#chat-log .message")).to_have_count(4)

    # a reward model scores what is shown
    page.locator("#chat-reward").select_option(label="reward/0001 step 1")
    expect(page.locator("#chat-log .facts").last).to_contain_text("score", timeout=ANSWER_MS)

    # renamed and exported; a system prompt is kept under a name
    page.locator("#chat-manage > summary").click()
    page.locator("#chat-title").fill("Names")
    page.get_by_role("button", name="Rename").click()
    expect(page.locator("#chat-conversation option:checked")).to_have_text("Names")
    with page.expect_download() as download:
        page.locator("#chat-export").click()
    exported = json.loads(download.value.path().read_text())
    assert (exported["title"], len(exported["messages"]), len(exported["turns"])) == ("Names", 4, 7)
    page.locator("#chat-system").fill("Speak like a pirate.")
    page.locator("#chat-preset-name").fill("Pirate")
    page.get_by_role("button", name="Save as preset").click()
    expect(page.locator("#chat-preset option", has_text="Pirate")).to_be_attached()

    # a new one, the old one again, and it is deleted only at the second click
    page.locator("#chat-new").click()
    expect(page.locator("#chat-log .message")).to_have_count(0)
    say(page, "Hello?")
    last_answer(page)
    page.locator("#chat-conversation").select_option(label="Names")
    expect(page.locator("#chat-log .message")).to_have_count(4)
    page.locator("#chat-delete").click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page.locator("#chat-log .user.message").first).to_contain_text("Hello?")
    assert [row["title"] for row in app.query("SELECT title FROM conversations")] == ["Hello?"]
    assert len(app.query("SELECT * FROM latest_rankings")) == 1


def test_nothing_is_lost_by_reload_second_browser_and_restart(app: App, page: Page, browser: Browser) -> None:
    open_chat(page, app)
    page.locator("#chat-new").click()
    set_length(page, 1900)
    say(page, "Tell me a long story.")
    expect(page.locator("#chat-stop")).to_be_visible()

    # after a reload the same answer goes on
    open_chat(page, app)
    expect(page.locator("#chat-log .user.message")).to_contain_text("Tell me a long story.")
    answer = page.locator("#chat-log .bot.message .markdown")
    expect(answer).not_to_be_empty(timeout=ANSWER_MS)
    expect(page.locator("#chat-stop")).to_be_visible()

    # a second browser shows it too, and its Stop stops it for both
    context = browser.new_context()
    other = context.new_page()
    open_chat(other, app)
    expect(other.locator("#chat-stop")).to_be_visible()
    other.locator("#chat-stop").click()
    for each in (other, page):
        expect(each.locator("#chat-send")).to_be_visible(timeout=ANSWER_MS)
        expect(each.locator("#chat-log .facts")).to_contain_text("stopped")
    context.close()
    assert len(app.query("SELECT * FROM turns WHERE text = 'Tell me a long story.'")) == 1

    # the app is killed in the middle of an answer: what had been kept is there, and said to be a part
    page.locator("#chat-log .bot").get_by_role("button", name="Regenerate").click()
    begun = "SELECT id, text FROM turns WHERE role = 'assistant' AND finish_reason IS NULL AND text != ''"
    kept = wait_for(lambda: app.query(begun))[0]
    app.kill()
    assert len(app.query(begun)) == 1
    app.start()
    open_chat(page, app)
    expect(page.locator("#chat-log .facts")).to_contain_text("interrupted when the app ended", timeout=ANSWER_MS)
    expect(page.locator("#chat-send")).to_be_visible()
    (left,) = app.query("SELECT text, finish_reason FROM turns WHERE id = ?", (kept["id"],))
    assert left["finish_reason"] == "interrupted"
    assert left["text"].startswith(kept["text"])


def test_on_a_phone_nothing_is_cut_off(app: App, phone: Page) -> None:
    open_chat(phone, app)
    expect(phone.locator("#chat-log .message").first).to_be_visible()
    width = "document.documentElement.scrollWidth"
    assert phone.evaluate(width) <= 390
    phone.locator("#chat-settings > summary").click()
    assert phone.evaluate(width) <= 390
    assert violations(phone) == []


def test_somebody_else_s_conversation_is_not_given_out(app: App) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{app.url}/conversations/999999")
