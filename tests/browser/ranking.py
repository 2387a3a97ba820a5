"""The Rank tab as a person uses it, for the tests that need rankings made on the page; and what SQLite then holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Locator, Page, expect

from labeler.projects import Project, create_project
from labeler.prompts import add_completion, add_prompt
from labeler.store import Store
from labeler.tasks import create_task
from labeler.users import local_owner
from labeler.workspace import open_workspace
from tests.browser.conftest import App

Ranks = dict[str, int | None]
"""What was said of a prompt's completions: text -> rank."""


def open_rank(page: Page, app: App) -> None:
    page.goto(app.url)
    page.locator(".card").first.wait_for()  # the whole page is loaded first: more patience than `expect` has


@contextmanager
def store_of(app: App) -> Iterator[Store]:
    """The app's database, also while it runs."""
    store = open_workspace(app.workspace, app.base_model, seed_file=None).store
    yield store
    store.close()


def add_project(app: App, name: str, tasks: Sequence[tuple[str, Sequence[str]]], **settings: Any) -> Project:
    """A project with these tasks: (prompt, completions)."""
    with store_of(app) as store:
        project = create_project(store, local_owner(store), name, **settings)
        add_tasks(store, project.id, tasks)
    return project


def add_tasks(store: Store, project_id: int, tasks: Sequence[tuple[str, Sequence[str]]], **more: Any) -> None:
    with store.write() as db:
        for text, answers in tasks:
            prompt_id = add_prompt(db, [{"role": "user", "content": text}], "", "test")
            ids = [add_completion(db, prompt_id, answer, None, {}, None, "stop", "test") for answer in answers]
            create_task(db, prompt_id, ids, project_id=project_id, **more)


def press(page: Page, keys: str) -> None:
    """Several keys, with spaces between them."""
    for key in keys.split():
        page.keyboard.press(key)


def touch_drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """One finger from here to there."""
    touch = page.context.new_cdp_session(page)
    for step in range(10):
        points = [{"x": start[0] + (end[0] - start[0]) * step / 9, "y": start[1] + (end[1] - start[1]) * step / 9}]
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove" if step else "touchStart", "touchPoints": points})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def tap(target: Locator) -> None:
    """Tap until the click arrives: Chromium swallows a tap that follows another touch too soon."""
    node = target.element_handle()
    node.evaluate("node => node.addEventListener('click', () => (node.clicked = true), { once: true })")
    for _ in range(20):
        target.tap()
        target.page.wait_for_timeout(100)
        if node.evaluate("node => node.clicked === true"):
            return
    raise AssertionError("no click came of twenty taps")


def payload(app: App, kind: str = "submit") -> dict[str, Any]:
    """What the last event of this kind holds."""
    (row,) = app.query("SELECT payload FROM events WHERE kind = ? ORDER BY id DESC LIMIT 1", (kind,))
    found: dict[str, Any] = json.loads(row["payload"])
    return found


def prompt(page: Page) -> str:
    return page.locator(".prompt .turn-text").last.inner_text()


def texts(page: Page) -> list[str]:
    """What the cards say, in the order in which they stand."""
    return [text.strip() for text in page.locator(".card-text").all_inner_texts()]


def badges(page: Page) -> list[str]:
    return [re.sub(r"\s+", " ", text).strip() for text in page.locator(".badge").all_inner_texts()]


def submit(page: Page, by_mouse: bool = False) -> None:
    """Submit, by keyboard unless told otherwise, and wait for the next task."""
    before = prompt(page)
    if by_mouse:
        page.locator(".submit").click()
    else:
        page.keyboard.press("Control+Enter")
    expect(page.locator(".prompt .turn-text").last).not_to_have_text(before)


def drag(page: Page, card: Locator, target: Locator) -> None:
    """Drag a card by its head to behind a card that stands to its right."""
    start, end = card.locator(".card-head").bounding_box(), target.bounding_box()
    assert start
    assert end
    page.mouse.move(start["x"] + 20, start["y"] + 15)
    page.mouse.down()
    page.mouse.move(start["x"] + 40, start["y"] + 30, steps=3)
    page.mouse.move(end["x"] + end["width"] * 0.9, end["y"] + end["height"] / 2, steps=8)
    page.mouse.up()


def rank_three_tasks(page: Page) -> dict[str, Ranks]:
    """One by dragging with the mouse, one with the keyboard alone, one with a tie; returns what was said, by prompt."""
    said: dict[str, Ranks] = {}

    question, shown = prompt(page), texts(page)
    assert badges(page) == ["–"] * 4
    drag(page, page.locator(".card").nth(0), page.locator(".card").nth(2))
    moved = texts(page)
    assert moved == [shown[1], shown[2], shown[0], shown[3]]
    assert badges(page) == ["1", "2", "3", "4"]
    said[question] = dict(zip(moved, (1, 2, 3, 4), strict=True))
    submit(page, by_mouse=True)

    question, shown = prompt(page), texts(page)
    for key in "3142":  # after a digit the next card is marked
        page.keyboard.press(key)
    assert badges(page) == ["3", "1", "4", "2"]
    said[question] = dict(zip(shown, (3, 1, 4, 2), strict=True))
    submit(page)

    question, shown = prompt(page), texts(page)
    for card, rank in ((0, 2), (1, 1), (2, 2)):
        page.locator(".card").nth(card).get_by_role("button", name=f"Rank {rank}").click()
    assert badges(page) == ["2 tie", "1", "2 tie", "–"]
    said[question] = dict(zip(shown, (2, 1, 2, None), strict=True))
    submit(page, by_mouse=True)

    assert len(said) == 3
    return said


def stored(app: App, question: str) -> Ranks:
    """The ranking in force of a prompt, read from the file."""
    (row,) = app.query(
        "SELECT r.completion_ids, r.ranks FROM latest_rankings AS r JOIN prompts AS p ON p.id = r.prompt_id"
        " WHERE json_extract(p.messages, '$[#-1].content') = ?",
        (question,),
    )
    found = {c["id"]: c["text"] for c in app.query("SELECT id, text FROM completions")}
    ids, ranks = json.loads(row["completion_ids"]), json.loads(row["ranks"])
    return {found[i]: rank for i, rank in zip(ids, ranks, strict=True)}
