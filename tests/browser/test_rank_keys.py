"""Every key of the Rank tab, on a desktop; and the same things by touch at 390 pixels."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from labeler.projects import write_guidelines
from labeler.users import local_owner
from tests.browser.conftest import App, MakeApp, seed_rows
from tests.browser.ranking import (
    badges,
    open_rank,
    payload,
    press,
    prompt,
    store_of,
    stored,
    submit,
    tap,
    texts,
    touch_drag,
)


@pytest.fixture(scope="module")
def app(make_app: MakeApp) -> App:
    return make_app(seed_rows(40))


@pytest.fixture
def task(app: App, page: Page) -> Page:
    """The Rank tab on a task of which nothing was said yet."""
    open_rank(page, app)
    if set(badges(page)) != {"–"}:
        skip_task(page)
    return page


def skip_task(page: Page) -> None:
    before = prompt(page)
    press(page, "Escape s Enter")
    expect(page.locator(".prompt .turn-text").last).not_to_have_text(before)


def next_came(page: Page, before: str) -> None:
    expect(page.locator(".prompt .turn-text").last).not_to_have_text(before)


def test_k_digits_and_one_more_rank_k_completions(task: Page, app: App) -> None:
    question, shown = prompt(task), texts(task)
    assert badges(task) == ["–"] * 4
    press(task, "2 1 2 3 Control+Enter")
    next_came(task, question)
    assert stored(app, question) == dict(zip(shown, (2, 1, 2, 3), strict=True))


def test_j_k_and_arrows_mark_and_alt_arrows_move(task: Page) -> None:
    cards, shown = task.locator(".card"), texts(task)
    keys = ("j", "ArrowDown", "ArrowRight", "j", "k", "ArrowUp", "ArrowLeft")
    for key, at in zip(keys, (1, 2, 3, 0, 3, 2, 1), strict=True):
        press(task, key)
        expect(cards.nth(at)).to_be_focused()
        expect(cards.nth(at)).to_have_class("card draggable active")
    press(task, "Alt+ArrowDown")
    assert texts(task) == [shown[0], shown[2], shown[1], shown[3]]
    press(task, "Alt+ArrowUp Alt+ArrowLeft")
    assert texts(task) == [shown[1], shown[0], shown[2], shown[3]]
    press(task, "Alt+ArrowRight")
    assert texts(task) == shown
    assert badges(task) == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("keys", "reason"), [("s 3", "not my field"), ("s Enter", None), ("s 5 h m Enter", "hm"), ("s 1", "unclear")]
)
def test_s_skips_with_a_reason_or_without(task: Page, app: App, keys: str, reason: str | None) -> None:
    question = prompt(task)
    press(task, "s Escape")
    expect(task.locator(".reasons")).to_have_count(0)
    press(task, keys)
    next_came(task, question)
    assert payload(app, "skip").get("reason") == reason


def test_f_flags_and_the_task_stays(task: Page, app: App) -> None:
    question = prompt(task)
    press(task, "1 f 2")
    expect(task.locator(".rank-notice")).to_contain_text("Flagged: personal data")
    assert (prompt(task), badges(task)[0]) == (question, "1")
    assert payload(app, "flag")["reason"] == "personal data"
    press(task, "f Enter")  # a flag needs a reason
    expect(task.locator(".reasons")).to_be_visible()


def test_x_marks_all_as_bad(task: Page, app: App) -> None:
    press(task, "x")
    expect(task.locator(".all-bad")).to_have_attribute("aria-pressed", "true")
    submit(task)
    assert payload(app)["all_bad"] is True


def test_e_rewrites_the_best_answer(task: Page, app: App) -> None:
    shown = texts(task)
    press(task, "3 1 2")
    press(task, "e")
    area = task.get_by_label("A better answer").get_by_role("textbox")
    expect(area).to_be_focused()
    expect(area).to_have_value(shown[1])
    press(task, "Escape")  # nothing was changed
    expect(task.locator(".rewrite-panel")).to_be_hidden()
    press(task, "e End")
    task.keyboard.type(" And 1 more.")
    expect(task.locator(".draft-note")).to_have_text("Draft saved")
    task.reload()
    expect(area).to_have_value(f"{shown[1]} And 1 more.")
    submit(task)
    assert payload(app)["rewrite"] == f"{shown[1]} And 1 more."


def test_t_opens_tags_and_numbers_pick(task: Page, app: App) -> None:
    shown = texts(task)
    press(task, "t 1 4 4 2 t")
    card = task.locator(".card").nth(0)
    expect(card.locator(".tag")).to_have_text(["helpful", "truthful"])
    assert badges(task) == ["–"] * 4  # the numbers went to the tags
    press(task, "j t 5 Escape 1")
    expect(task.locator(".card").nth(1).locator(".tag")).to_have_text(["repetitive"])
    expect(task.locator(".draft-note")).to_have_text("Draft saved")
    task.reload()
    expect(card.locator(".tag")).to_have_text(["helpful", "truthful"])
    assert badges(task) == ["–", "1", "–", "–"]
    press(task, "2")
    submit(task)
    said = payload(app)
    found = {row["id"]: row["text"] for row in app.query("SELECT id, text FROM completions")}
    by_text = {found[i]: tags for i, tags in zip(said["completion_ids"], said["tags"], strict=True)}
    assert by_text == {shown[0]: ["helpful", "truthful"], shown[1]: ["repetitive"], shown[2]: [], shown[3]: []}


def test_d_shows_differences_by_words(task: Page) -> None:
    shown = texts(task)
    press(task, "j d")
    card = task.locator(".card").nth(1)
    expect(card.locator(".differences-note")).to_contain_text("Compared with completion A")
    parts = card.locator(".differences-text")
    here = parts.evaluate("n => [...n.childNodes].filter(c => c.nodeName !== 'DEL').map(c => c.textContent).join('')")
    there = parts.evaluate("n => [...n.childNodes].filter(c => c.nodeName !== 'INS').map(c => c.textContent).join('')")
    assert (here.split(), there.split()) == (shown[1].split(), shown[0].split())
    assert card.locator("ins").count() >= 1
    press(task, "d")
    assert texts(task) == shown
    press(task, "k k 1 k d")  # the last one is ranked best: it is compared with the one before
    expect(task.locator(".differences-note")).to_contain_text("Compared with completion C")
    press(task, "d k d")  # any other one is compared with the best
    expect(task.locator(".differences-note")).to_contain_text("Compared with completion D")


def test_r_c_and_typing(task: Page) -> None:
    press(task, "r")
    expect(task.locator(".card-text.as-raw")).to_have_count(4)
    press(task, "r c")
    expect(task.get_by_label("Comment", exact=True)).to_be_focused()
    task.keyboard.type("xsf1? tdrgh")
    expect(task.locator(".side")).to_be_hidden()
    press(task, "Escape")
    expect(task.locator(".card").nth(0)).to_be_focused()
    for key in ("Control+x", "Alt+s", "Meta+f", "Control+1"):
        press(task, key)
    assert badges(task) == ["–"] * 4
    expect(task.locator(".reasons")).to_have_count(0)
    expect(task.locator(".all-bad")).to_have_attribute("aria-pressed", "false")


def test_g_shows_the_guidelines_and_a_new_version_is_marked(task: Page, app: App) -> None:
    press(task, "g")
    expect(task.locator(".side")).to_contain_text("no guidelines yet")
    with store_of(app) as store:
        version = write_guidelines(store, local_owner(store), 1, "# Be kind\n\n<img src=x onerror=alert(1)> $x^2$")
    task.reload()
    button = task.locator(".tools .guidelines")
    expect(button).to_contain_text("new")
    press(task, "g")
    expect(task.locator(".side")).to_contain_text(f"Version {version}")
    expect(task.locator(".side h1")).to_have_text("Be kind")
    expect(task.locator(".side math")).to_be_visible()
    assert task.locator(".side img").count() == 0
    expect(button).to_have_text("Guidelines")
    press(task, "Escape 1 2")
    expect(task.locator(".side")).to_be_hidden()
    submit(task)
    assert payload(app)["guidelines_version"] == version
    expect(button).to_have_text("Guidelines")


def test_h_lists_the_last_labels_and_one_can_be_changed(task: Page, app: App) -> None:
    question, shown = prompt(task), texts(task)
    press(task, "1 2 3 4")
    submit(task)
    press(task, "4 3")
    waiting = prompt(task)
    press(task, "h")
    first = task.locator(".labels button").first
    expect(first).to_contain_text(question)
    expect(first).to_contain_text("A 1 · B 2 · C 3 · D 4")
    first.click()
    expect(task.locator(".correcting")).to_be_visible()
    assert (prompt(task), texts(task), badges(task)) == (question, shown, ["1", "2", "3", "4"])
    press(task, "Escape Escape")  # the panel, then the change
    expect(task.locator(".correcting")).to_have_count(0)
    assert (prompt(task), badges(task)) == (waiting, ["4", "3", "–", "–"])
    press(task, "h")
    task.locator(".labels button").first.click()
    expect(task.locator(".correcting")).to_be_visible()
    task.locator(".card").nth(0).focus()
    press(task, "4 Control+Enter")
    expect(task.locator(".correcting")).to_have_count(0)
    assert prompt(task) == waiting
    assert stored(app, question) == dict(zip(shown, (4, 2, 3, 4), strict=True))
    kinds = [row["kind"] for row in app.query("SELECT kind FROM events ORDER BY id DESC LIMIT 2")]
    assert kinds == ["submit", "submit"]  # both are kept; the later one is in force
    expect(task.locator(".labels button").first).to_contain_text("A 4 · B 2 · C 3 · D 4")  # the panel is still open


def test_ctrl_z_takes_back_all_that_was_said(task: Page) -> None:
    question = prompt(task)
    press(task, "2 1 k k t 3 t")
    before = badges(task), task.locator(".tag").all_inner_texts()
    submit(task)
    press(task, "Control+z")
    expect(task.locator(".prompt .turn-text").last).to_have_text(question)
    assert (badges(task), task.locator(".tag").all_inner_texts()) == before
    assert before[1] == ["harmless"]


def test_question_mark_shows_every_key(task: Page) -> None:
    press(task, "?")
    shown = task.locator(".side kbd").all_inner_texts()
    for key in ("1", "9", "0", "J", "K", "Alt + arrows", "X", "S", "F", "T", "E", "D", "C", "R", "G", "H", "?"):
        assert key in shown
    press(task, "?")
    expect(task.locator(".side")).to_be_hidden()


def test_this_session_is_counted(browser: Browser, app: App) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    open_rank(page, app)
    expect(page.locator(".progress-text")).not_to_contain_text("session")
    for count in (1, 2):
        press(page, "1 2 3 4")
        submit(page)
        expect(page.locator(".progress-text")).to_contain_text(f"this session {count}, median ")
    page.reload()
    expect(page.locator(".progress-text")).to_contain_text("this session 2, median ")
    press(page, "Control+z")
    expect(page.locator(".progress-text")).to_contain_text("this session 1, median ")
    context.close()


def test_a_draft_is_there_on_another_device(task: Page, app: App, phone: Page) -> None:
    press(task, "2 1 t 2 t")
    task.get_by_label("Comment", exact=True).fill("from my desk")
    expect(task.locator(".draft-note")).to_have_text("Draft saved")
    open_rank(phone, app)
    assert (prompt(phone), texts(phone), badges(phone)) == (prompt(task), texts(task), ["2", "1", "–", "–"])
    expect(phone.get_by_label("Comment", exact=True)).to_have_value("from my desk")
    expect(phone.locator(".tag")).to_have_text(["truthful"])


def test_the_lease_is_kept_while_the_page_is_open(app: App, page: Page) -> None:
    page.clock.install()
    open_rank(page, app)
    leased = "SELECT max(leased_until) AS until FROM assignments WHERE state = 'open'"
    before = app.query(leased)[0]["until"]
    with page.expect_response(lambda answer: "rank_heartbeat" in (answer.request.post_data or "")) as answer:
        page.clock.fast_forward(61_000)
    assert answer.value.json() == {"open": True}
    assert app.query(leased)[0]["until"] > before


# ---------------------------------------------------------------- by touch


def test_everything_by_touch_on_a_small_screen(make_app: MakeApp, phone: Page) -> None:
    app = make_app(seed_rows(6))
    with store_of(app) as store:
        write_guidelines(store, local_owner(store), 1, "Be kind.")
    open_rank(phone, app)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    first = prompt(phone)
    tap(phone.locator(".skip"))
    tap(phone.get_by_role("button", name="too long"))
    next_came(phone, first)
    assert payload(app, "skip")["reason"] == "too long"

    tap(phone.locator(".flag"))
    tap(phone.get_by_role("button", name="other"))
    phone.locator(".reason-text").fill("in German")
    phone.locator(".reason-text").press("Enter")
    expect(phone.locator(".rank-notice")).to_contain_text("Flagged: in German")

    question, shown = prompt(phone), texts(phone)
    tap(phone.locator(".card").nth(2).locator(".tags"))
    tap(phone.get_by_role("button", name="harmless"))
    tap(phone.locator(".card").nth(2).locator(".tags"))
    expect(phone.locator(".card").nth(2).locator(".tag")).to_have_text(["harmless"])
    tap(phone.locator(".card").nth(1).locator(".differences"))
    expect(phone.locator(".differences-note")).to_be_visible()
    tap(phone.locator(".card").nth(1).locator(".differences"))
    tap(phone.locator(".raw"))
    expect(phone.locator(".as-raw")).to_have_count(4)
    tap(phone.locator(".raw"))
    tap(phone.locator(".tools .guidelines"))
    expect(phone.locator(".side")).to_contain_text("Be kind.")
    tap(phone.locator(".side").get_by_role("button", name="Close"))
    for card, rank in enumerate((2, 1, 1)):
        tap(phone.locator(".card").nth(card).get_by_role("button", name=f"Rank {rank}"))
    tap(phone.locator(".card").nth(2).get_by_role("button", name="Clear"))
    tap(phone.locator(".rewrite"))
    phone.get_by_label("A better answer").get_by_role("textbox").fill("Sleep.")
    tap(phone.locator(".submit"))
    next_came(phone, question)
    assert stored(app, question) == dict(zip(shown, (2, 1, None, None), strict=True))
    assert payload(app)["rewrite"] == "Sleep."

    tap(phone.locator(".undo"))
    expect(phone.locator(".prompt .turn-text").last).to_have_text(question)
    tap(phone.locator(".all-bad"))
    tap(phone.locator(".submit"))
    next_came(phone, question)
    tap(phone.locator(".tools .history"))
    expect(phone.locator(".labels button")).to_have_count(1)
    tap(phone.locator(".labels button"))
    tap(phone.get_by_role("button", name="Back to the queue"))
    next_came(phone, question)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_finger_on_the_text_scrolls_and_on_the_head_drags(make_app: MakeApp, phone: Page) -> None:
    app = make_app(seed_rows(2, ["Line.\n\n" * 60, "Short one.", "Short two.", "Short three."]))
    open_rank(phone, app)
    shown = texts(phone)
    long = next(i for i, text in enumerate(shown) if text.startswith("Line."))
    body = phone.locator(".card-text").nth(long)
    body.scroll_into_view_if_needed()
    assert body.evaluate("node => node.scrollHeight > node.clientHeight")  # long answers scroll within their card
    box = phone.locator(".card").nth(long).bounding_box()
    assert box
    middle = max(box["y"], 0) + 300
    touch_drag(phone, (200, middle), (200, middle - 200))
    phone.wait_for_function(
        "[...document.querySelectorAll('.card-text')].some((n) => n.scrollTop > 50) || scrollY > 50"
    )
    assert (texts(phone), badges(phone)) == (shown, ["–"] * 4)


def test_cards_of_one_row_are_equally_high_and_long_answers_scroll(make_app: MakeApp, page: Page) -> None:
    app = make_app(seed_rows(1, ["A long answer. " * 400, "Short.", "Middle. " * 40, "Short too."]))
    open_rank(page, app)
    boxes = [card.bounding_box() for card in page.locator(".card").all()]
    heights: dict[float, set[float]] = {}
    for box in boxes:
        assert box
        heights.setdefault(box["y"], set()).add(round(box["height"]))
    assert all(len(row) == 1 for row in heights.values())
    scrolls = "[...document.querySelectorAll('.card-text')].filter((n) => n.scrollHeight > n.clientHeight)"
    page.wait_for_function(f"{scrolls}.length === 1 && {scrolls}[0].tabIndex === 0")  # and by keyboard


def test_nine_completions(make_app: MakeApp, page: Page) -> None:
    app = make_app(seed_rows(2, [f"Answer number {n}." for n in range(9)]))
    open_rank(page, app)
    question, shown = prompt(page), texts(page)
    assert len(shown) == 9
    press(page, "9 8 7 6 5 4 3 2 1 Control+Enter")
    next_came(page, question)
    assert stored(app, question) == dict(zip(shown, range(9, 0, -1), strict=True))
