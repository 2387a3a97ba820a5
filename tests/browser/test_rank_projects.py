"""Projects in the Rank tab: pairs, ratings, choosing one, and the way in by known answers."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from labeler.projects import change_project
from labeler.users import add_user, local_owner
from tests.browser.conftest import App, MakeApp, seed_rows
from tests.browser.ranking import (
    add_project,
    add_tasks,
    badges,
    open_rank,
    payload,
    press,
    prompt,
    store_of,
    submit,
    tap,
    texts,
)

ANSWERS = ["Yes, at once.", "No, never.", "Perhaps."]


@pytest.fixture
def app(make_app: MakeApp) -> App:
    app = make_app(seed_rows(3))
    add_project(app, "Pairs", [(f"Which one, {n}?", ANSWERS[:2]) for n in range(6)], question="pairwise")
    add_project(app, "Ratings", [(f"How good, {n}?", ANSWERS) for n in range(4)], question="ratings")
    return app


def choose(page: Page, name: str, first: str) -> None:
    page.locator("#rank").get_by_label("Project", exact=True).select_option(label=name)
    expect(page.locator(".prompt .turn-text").last).to_contain_text(first)


def said_in_order(app: App, page_texts: list[str]) -> dict[str, int | None]:
    said = payload(app)
    found = {row["id"]: row["text"] for row in app.query("SELECT id, text FROM completions")}
    return {found[i]: rank for i, rank in zip(said["completion_ids"], said["ranks"], strict=True)}


@pytest.mark.parametrize(
    ("keys", "ranks", "strength"),
    [
        *[("1", (1, 2), 4), ("4", (1, 2), 1), ("5", (1, 1), None), ("9", (2, 1), 4)],
        *[("ArrowLeft ArrowLeft", (1, 2), 2), ("ArrowRight", (2, 1), 1), ("9 ArrowLeft", (2, 1), 3)],
    ],
)
def test_a_pair_on_nine_steps(pairs: App, page: Page, keys: str, ranks: tuple[int, int], strength: int | None) -> None:
    open_rank(page, pairs)
    if page.locator("#rank").get_by_label("Project", exact=True).input_value() != "2":
        choose(page, "Pairs", "Which one")
    shown = texts(page)
    page.locator(".card").first.focus()
    press(page, keys)
    submit(page)
    assert said_in_order(pairs, shown) == dict(zip(shown, ranks, strict=True))
    assert payload(pairs).get("strength") == strength


@pytest.fixture(scope="module")
def pairs(make_app: MakeApp) -> App:
    app = make_app(seed_rows(1))
    add_project(app, "Pairs", [(f"Which one, {n}?", ANSWERS[:2]) for n in range(20)], question="pairwise")
    return app


def test_a_pair_by_mouse_and_its_draft(app: App, page: Page) -> None:
    open_rank(page, app)
    choose(page, "Pairs", "Which one, 0?")
    page.get_by_role("button", name="B clearly better").click()
    expect(page.locator(".scale-said")).to_have_text("B clearly better")
    assert badges(page) == ["–", "better"]
    expect(page.locator(".draft-note")).to_have_text("Draft saved")
    page.reload()
    expect(page.locator(".scale-said")).to_have_text("B clearly better")
    press(page, "0 Control+Enter")
    expect(page.locator(".rank-notice")).to_contain_text("Say which one is better")
    press(page, "x")
    submit(page)
    assert payload(app)["all_bad"] is True


def test_a_pair_by_touch(app: App, phone: Page) -> None:
    open_rank(phone, app)
    choose(phone, "Pairs", "Which one, 0?")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    question = prompt(phone)
    tap(phone.get_by_role("button", name="A much better"))
    tap(phone.locator(".submit"))
    expect(phone.locator(".prompt .turn-text").last).not_to_have_text(question)
    assert payload(app)["strength"] == 4


def test_ratings(app: App, page: Page) -> None:
    open_rank(page, app)
    choose(page, "Ratings", "How good, 0?")
    shown = texts(page)
    page.locator(".card").first.focus()
    press(page, "6 4 2")  # six is no rating
    assert badges(page) == ["4 /5", "2 /5", "–"] or badges(page) == ["4/5", "2/5", "–"]
    expect(page.locator(".draft-note")).to_have_text("Draft saved")
    page.reload()
    expect(page.locator(".card.answered")).to_have_count(2)
    page.get_by_role("button", name="Rate completion C 4 of 5").click()
    submit(page)
    said = payload(app)
    found = {row["id"]: row["text"] for row in app.query("SELECT id, text FROM completions")}
    rated = {found[i]: rating for i, rating in zip(said["completion_ids"], said["ratings"], strict=True)}
    assert rated == dict(zip(shown, (4, 2, 4), strict=True))
    assert said_in_order(app, shown) == dict(zip(shown, (2, 4, 2), strict=True))
    press(page, "h")
    expect(page.locator(".label-said").first).to_have_text("A 4 · B 2 · C 4")


def test_the_chosen_project_is_kept_and_its_progress_shown(app: App, page: Page) -> None:
    open_rank(page, app)
    choose(page, "Ratings", "How good, 0?")
    expect(page.locator(".progress-text")).to_contain_text("0 of 4")
    page.reload()
    expect(page.locator(".prompt .turn-text").last).to_contain_text("How good, 0?")


def test_qualification_comes_first_and_is_counted(make_app: MakeApp, page: Page) -> None:
    """An annotator's: leads never need to qualify."""
    app = make_app(seed_rows(2))
    with store_of(app) as store:
        owner = local_owner(store)
        change_project(store, owner, 1, qualification=2)
        add_tasks(store, 1, [("Known one?", ANSWERS), ("Known two?", ANSWERS)], gold_ranks=[1, 2, 3])
        add_user(store, "ann", "annotator", "a long password")
    log_in(page, app, "ann", "a long password")
    page.locator(".card").first.wait_for()
    expect(page.locator(".progress-text")).to_contain_text("Qualification: 0 of 2 done")
    expect(page.locator(".prompt .turn-text").last).to_contain_text("Known")


def test_two_annotators_in_two_browsers_never_have_the_same_task(make_app: MakeApp, browser: Browser) -> None:
    app = make_app(seed_rows(6))
    with store_of(app) as store:
        for name in ("ann", "bob"):
            add_user(store, name, "annotator", f"{name}'s long password")
    pages = []
    for name in ("ann", "bob"):
        page = browser.new_context().new_page()
        log_in(page, app, name, f"{name}'s long password")
        page.locator(".card").first.wait_for()  # the whole page is loaded first
        pages.append(page)
    seen: list[str] = []
    for done in range(3):
        for page in pages:  # both have one open while one of them submits
            expect(page.locator(".card").first).to_be_visible()
        seen += [prompt(page) for page in pages]
        for page in pages:
            press(page, "1 2 3 4")
            page.keyboard.press("Control+Enter")
            expect(page.locator(".progress-text")).to_contain_text(f"{done + 1} of ")
    for page in pages:
        expect(page.locator(".rank-empty")).to_be_visible()
        page.context.close()
    assert len(set(seen)) == len(seen) == 6
    counts = "SELECT count(*) AS n FROM latest_rankings GROUP BY task_id"
    assert app.query(counts) == [{"n": 1}] * 6


def log_in(page: Page, app: App, name: str, password: str) -> None:
    page.goto(app.url)
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


def test_one_project_needs_no_chooser(make_app: MakeApp, page: Page) -> None:
    open_rank(page, make_app(seed_rows(1)))
    expect(page.locator("#rank").get_by_label("Project", exact=True)).to_have_count(0)
