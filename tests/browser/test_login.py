"""Logging in, seeing what one's role needs, and logging out, in a real browser."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from labeler.users import add_user
from labeler.workspace import open_workspace
from tests.browser.conftest import MakeApp, seed_rows
from tests.browser.ranking import submit


def test_an_annotator_logs_in_ranks_and_logs_out(make_app: MakeApp, page: Page) -> None:
    app = make_app(seed_rows(3))
    store = open_workspace(app.workspace, app.base_model, seed_file=None).store
    add_user(store, "ann", "annotator", "correct horse")  # while the app runs: from now on it asks for a login
    store.close()

    page.goto(app.url)
    expect(page).to_have_title("Log in · Preference Loop")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_have_text("Name or password is wrong.")
    page.get_by_label("Name").fill("ann")
    page.get_by_label("Password").fill("correct horse")
    page.get_by_role("button", name="Log in").click()

    expect(page.locator(".card").first).to_be_visible()
    expect(page.locator(".site-user")).to_have_text("ann")
    for name, shown in (("Rank", True), ("Compare", True), ("Train", False), ("Data", False)):
        expect(page.get_by_role("tab", name=name, exact=True)).to_be_visible(visible=shown)

    app.restart()  # the session is in the database
    page.reload()
    expect(page.locator(".card").first).to_be_visible()
    for key in "1234":
        page.keyboard.press(key)
    submit(page)
    sql = "SELECT u.name FROM latest_rankings AS r JOIN users AS u ON u.id = r.user_id"
    assert app.query(sql) == [{"name": "ann"}]

    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_title("Log in · Preference Loop")
    page.goto(app.url)
    expect(page).to_have_title("Log in · Preference Loop")
