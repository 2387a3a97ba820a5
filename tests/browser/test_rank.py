"""The Rank tab in a real browser: what was done is in SQLite, and nothing that was done is lost."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import ANSWERS, App, MakeApp, seed_rows
from tests.browser.ranking import badges, open_rank, prompt, rank_three_tasks, stored, submit, tap, texts, touch_drag


def open_fresh(page: Page, app: App) -> None:
    """Open an app that other tests used too, on a task without a draft of theirs."""
    open_rank(page, app)
    if app.query("SELECT 1 FROM drafts AS d JOIN assignments AS a ON a.id = d.assignment_id WHERE a.state = 'open'"):
        before = prompt(page)
        page.keyboard.press("s")
        page.keyboard.press("Enter")
        expect(page.locator(".prompt .turn-text").last).not_to_have_text(before)


def test_three_tasks_by_drag_by_keyboard_and_with_a_tie(app: App, page: Page) -> None:
    open_fresh(page, app)
    done = len(app.query("SELECT 1 FROM latest_rankings"))
    question = prompt(page)
    assert sorted(texts(page)) == sorted(f"{a} (answer to {question.split(':')[0].split()[1]})" for a in ANSWERS)
    said = rank_three_tasks(page)
    assert question in said
    for question, ranks in said.items():
        assert stored(app, question) == ranks
    page.reload()
    expect(page.locator(".progress-text")).to_have_text(re.compile(rf"^{done + 3} of 40 · {done + 3} today"))
    assert prompt(page) not in said


def test_twenty_tasks_with_the_keyboard_alone(make_app: MakeApp, page: Page) -> None:
    app = make_app(seed_rows(20))
    open_rank(page, app)
    for number in range(20):
        assert prompt(page).startswith(f"Question {number + 1}:")
        for key in "1234":
            page.keyboard.press(key)
        page.keyboard.press("Control+Enter")
        if number < 19:
            expect(page.locator(".prompt .turn-text").last).to_contain_text(f"Question {number + 2}:")
    expect(page.get_by_role("heading", name="Everything is ranked")).to_be_visible()
    events = app.query("SELECT kind, payload FROM events")
    assert [event["kind"] for event in events] == ["submit"] * 20
    # in the order of display the ranks were 1 2 3 4 each time; as stored they differ, since the display is shuffled
    for event in events:
        payload = json.loads(event["payload"])
        ranks = dict(zip(payload["completion_ids"], payload["ranks"], strict=True))
        assert [ranks[i] for i in payload["display_order"]] == [1, 2, 3, 4]
    assert len({str(json.loads(event["payload"])["ranks"]) for event in events}) > 1

    page.get_by_role("button", name="Go to Train").click()
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")


def test_a_draft_survives_a_killed_app(make_app: MakeApp, page: Page) -> None:
    app = make_app(seed_rows(3))
    open_rank(page, app)
    question, shown = prompt(page), texts(page)
    page.keyboard.press("2")
    page.keyboard.press("1")
    page.get_by_label("Comment", exact=True).fill("the second is honest")
    expect(page.locator(".draft-note")).to_have_text("Draft saved")
    app.kill()

    page.keyboard.press("Control+Enter")  # nobody answers: said beside the button, and nothing is lost
    expect(page.locator(".rank-notice")).to_contain_text("does not answer")
    assert badges(page) == ["2", "1", "–", "–"]

    app.restart()
    page.reload()
    expect(page.locator(".badge").first).to_have_text("2")
    assert (prompt(page), texts(page)) == (question, shown)
    assert badges(page) == ["2", "1", "–", "–"]
    expect(page.get_by_label("Comment", exact=True)).to_have_value("the second is honest")
    assert app.query("SELECT count(*) AS n FROM events") == [{"n": 0}]
    submit(page)
    assert stored(app, question) == dict(zip(shown, (2, 1, None, None), strict=True))
    assert app.query("SELECT comment FROM latest_rankings") == [{"comment": "the second is honest"}]


def test_a_submit_that_nobody_answered_can_be_repeated(make_app: MakeApp, page: Page) -> None:
    app = make_app(seed_rows(3))
    open_rank(page, app)
    question, shown = prompt(page), texts(page)
    for key in "1234":
        page.keyboard.press(key)
    app.stop()
    page.keyboard.press("Control+Enter")
    expect(page.locator(".rank-notice")).to_contain_text("does not answer")
    app.start()
    submit(page)
    assert stored(app, question) == dict(zip(shown, (1, 2, 3, 4), strict=True))
    assert app.query("SELECT kind FROM events") == [{"kind": "submit"}]


def test_a_double_click_lands_once(app: App, page: Page) -> None:
    open_fresh(page, app)
    before = app.query("SELECT count(*) AS n FROM events")[0]["n"]
    question = prompt(page)
    for key in "12":
        page.keyboard.press(key)
    page.locator(".submit").dblclick()
    expect(page.locator(".prompt .turn-text").last).not_to_have_text(question)
    assert app.query("SELECT count(*) AS n FROM events")[0]["n"] == before + 1


def test_one_rank_is_not_enough_and_all_bad_is(app: App, page: Page) -> None:
    open_fresh(page, app)
    question = prompt(page)
    page.keyboard.press("1")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".rank-notice")).to_contain_text("Rank at least two")
    assert prompt(page) == question
    page.keyboard.press("Backspace")  # the mark has moved on: nothing to clear there
    assert badges(page)[0] == "1"
    page.keyboard.press("k")
    page.keyboard.press("Backspace")
    assert badges(page) == ["–"] * 4
    page.keyboard.press("x")
    expect(page.get_by_role("button", name="All bad")).to_have_attribute("aria-pressed", "true")
    submit(page)
    (row,) = app.query("SELECT all_bad, ranks FROM latest_rankings ORDER BY event_id DESC LIMIT 1")
    assert row == {"all_bad": 1, "ranks": "[null,null,null,null]"}


def test_undo_brings_the_last_task_back(app: App, page: Page) -> None:
    open_fresh(page, app)
    question, shown = prompt(page), texts(page)
    for key in "4321":
        page.keyboard.press(key)
    submit(page)
    other = prompt(page)
    page.keyboard.press("1")  # a draft on the next task, which must not be lost either
    page.keyboard.press("Control+z")
    expect(page.locator(".prompt .turn-text").last).to_have_text(question)
    assert (texts(page), badges(page)) == (shown, ["4", "3", "2", "1"])
    assert app.query("SELECT kind FROM events ORDER BY id DESC LIMIT 2") == [{"kind": "retract"}, {"kind": "submit"}]
    page.locator(".card").nth(0).get_by_role("button", name="Rank 2").click()
    submit(page)
    assert stored(app, question) == dict(zip(shown, (2, 3, 2, 1), strict=True))
    assert prompt(page) == other
    assert badges(page) == ["1", "–", "–", "–"]


def test_keys_are_off_while_typing(app: App, page: Page) -> None:
    open_fresh(page, app)
    question = prompt(page)
    before = badges(page)
    page.keyboard.press("c")
    page.keyboard.type("x s 1 0 ?")
    expect(page.get_by_label("Comment", exact=True)).to_have_value("x s 1 0 ?")
    assert (prompt(page), badges(page)) == (question, before)
    expect(page.locator(".side")).to_be_hidden()
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.locator(".side[data-panel=keys]")).to_be_visible()


def test_moving_the_mark_and_the_cards_by_keyboard(app: App, page: Page) -> None:
    open_fresh(page, app)
    shown = texts(page)
    page.keyboard.press("j")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".card").nth(2)).to_be_focused()
    page.keyboard.press("k")
    page.keyboard.press("Alt+ArrowRight")
    assert texts(page) == [shown[0], shown[2], shown[1], shown[3]]
    assert badges(page) == ["1", "2", "3", "4"]
    page.keyboard.press("0")
    assert badges(page) == ["1", "2", "–", "4"]


def test_skipped_tasks_come_back(make_app: MakeApp, page: Page) -> None:
    app = make_app(seed_rows(2))
    open_rank(page, app)
    page.keyboard.press("s")
    page.keyboard.press("Enter")
    expect(page.locator(".prompt .turn-text").last).to_contain_text("Question 2:")
    page.get_by_role("button", name="Skip", exact=True).click()
    page.get_by_role("button", name="not my field").click()
    page.get_by_role("button", name="Bring back 2 skipped tasks").click()
    expect(page.locator(".prompt .turn-text").last).to_contain_text("Question 1:")
    assert app.query("SELECT count(*) AS n FROM latest_rankings") == [{"n": 0}]


HOSTILE = [
    "<script>window.hacked = 'script'</script><img src=x onerror=\"window.hacked = 'img'\">",
    "${window.hacked = 'template'} {{window.hacked}} `${hacked}`",
    "[click](javascript:window.hacked='link') <a href=\"javascript:window.hacked='a'\">x</a> ![i](x.png)",
    "<svg onload=\"window.hacked='svg'\"></svg><iframe srcdoc=\"<script>parent.hacked='frame'</script>\"></iframe>",
]


def test_hostile_text_stays_text(make_app: MakeApp, page: Page) -> None:
    row: dict[str, Any] = {
        "prompt": [
            {"role": "system", "content": HOSTILE[3]},
            {"role": "user", "content": HOSTILE[0]},
            {"role": "assistant", "content": HOSTILE[1] + HOSTILE[2]},
            {"role": "user", "content": HOSTILE[1]},
        ],
        "completions": HOSTILE,
    }
    app = make_app([row, *seed_rows(1)])
    open_rank(page, app)
    page.locator("details.turn summary").click()
    for text in (HOSTILE[0], HOSTILE[1], HOSTILE[3]):
        assert page.locator(".prompt .turn-text", has_text=text).count() == 1
    shown = "\n".join(texts(page))
    assert "window.hacked = 'script'" in shown
    assert "${window.hacked = 'template'} {{window.hacked}}" in shown
    assert page.locator(".rank :is(script, img, svg, iframe)").count() == 0
    assert page.locator(".rank a").count() == 0
    for button in page.locator(".card-text").all():
        button.click()
    page.keyboard.press("r")
    assert sorted(texts(page)) == sorted(HOSTILE)
    for key in "1234":
        page.keyboard.press(key)
    submit(page)
    assert page.evaluate("window.hacked") is None
    assert stored(app, HOSTILE[1]) == dict.fromkeys(HOSTILE) | stored(app, HOSTILE[1])


def test_on_a_small_touch_screen(make_app: MakeApp, phone: Page) -> None:
    app = make_app(seed_rows(2))
    open_rank(phone, app)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = [card.bounding_box() for card in phone.locator(".card").all()]
    assert len({box["x"] for box in boxes if box}) == 1  # stacked
    question, shown = prompt(phone), texts(phone)

    head = phone.locator(".card-head").nth(1).bounding_box()
    first = phone.locator(".card").nth(0).bounding_box()
    assert head
    assert first
    x, y = head["x"] + 30, head["y"] + 15
    touch_drag(phone, (x, y), (x, first["y"] + first["height"] * 0.3))
    assert texts(phone) == [shown[1], shown[0], shown[2], shown[3]]
    assert badges(phone) == ["1", "2", "3", "4"]

    tap(phone.locator(".card").nth(3).get_by_role("button", name="Rank 3"))
    expect(phone.locator(".badge").last).to_have_text(re.compile("3 ?tie"))
    assert badges(phone) == ["1", "2", "3 tie", "3 tie"]
    tap(phone.locator(".submit"))
    expect(phone.locator(".prompt .turn-text").last).not_to_have_text(question)
    assert stored(app, question) == {shown[1]: 1, shown[0]: 2, shown[2]: 3, shown[3]: 3}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_comes_from_elsewhere_and_no_script_fails(app: App, page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    requests: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    open_fresh(page, app)
    assert [url for url in requests if not url.startswith((app.url, "data:", "blob:"))] == []
    assert problems == []
