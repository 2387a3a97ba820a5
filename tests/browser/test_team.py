"""The Team tab in a real browser: a password, an invitation, a new person who ranks; projects and known answers."""

from __future__ import annotations

import httpx
from playwright.sync_api import Browser, Page, expect

from labeler import users
from tests.browser.conftest import PATIENCE_MS, App, MakeApp, seed_rows
from tests.browser.ranking import badges, store_of, submit

HOSTILE = "<img src=x onerror='window.hacked = 1'>${window.hacked = 2}"


def open_team(page: Page, app: App) -> None:
    page.goto(app.url)
    page.get_by_role("tab", name="Team", exact=True).click()
    expect(page.locator("#projects-table")).to_contain_text("First project")


def test_invite_set_a_password_and_rank(make_app: MakeApp, page: Page, browser: Browser) -> None:
    app = make_app(seed_rows(3))
    open_team(page, app)
    page.get_by_role("button", name="Make an invitation link").click()
    expect(page.locator("#invite-link")).to_contain_text("Choose a password for yourself first")
    page.get_by_label("Your password").fill("horse battery")
    page.get_by_label("Once more").fill("horse battery")
    page.get_by_role("button", name="Save my password").click()
    expect(page).to_have_title("Log in · Preference Loop")  # the header notices
    page.get_by_label("Name").fill("owner")
    page.get_by_label("Password").fill("horse battery")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("tab", name="Team", exact=True).click()
    page.get_by_role("button", name="Make an invitation link").click()
    address = page.get_by_label("Invitation link").input_value()
    assert address.startswith(f"{app.url}/invite/")

    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    context.set_default_timeout(PATIENCE_MS)
    newcomer = context.new_page()
    newcomer.goto(address)
    expect(newcomer).to_have_title("Invitation · Preference Loop")
    assert newcomer.evaluate("document.documentElement.scrollWidth") <= 390
    newcomer.get_by_label("Name").fill(HOSTILE)
    newcomer.get_by_label("Password", exact=True).fill("correct horse")
    newcomer.get_by_label("Password again").fill("wrong horse")
    newcomer.get_by_role("button", name="Save and log in").click()
    expect(newcomer.get_by_role("alert")).to_have_text("The two passwords differ; type them again")
    expect(newcomer.get_by_label("Name")).to_have_value(HOSTILE)
    newcomer.get_by_label("Password", exact=True).fill("correct horse")
    newcomer.get_by_label("Password again").fill("correct horse")
    newcomer.get_by_role("button", name="Save and log in").click()
    newcomer.locator(".card").first.wait_for()
    for card in range(4):
        newcomer.locator(".card").nth(card).get_by_role("button", name=f"Rank {card + 1}").click()
    assert badges(newcomer) == ["1", "2", "3", "4"]
    submit(newcomer, by_mouse=True)
    sql = "SELECT u.name, u.role FROM latest_rankings AS r JOIN users AS u ON u.id = r.user_id"
    assert app.query(sql) == [{"name": HOSTILE, "role": "annotator"}]
    expect(newcomer.get_by_role("tab", name="Team", exact=True)).to_be_hidden()
    newcomer.goto(address)
    expect(newcomer.get_by_role("alert")).to_contain_text("This link was used")

    open_team(page, app)
    expect(page.locator("#people-table")).to_contain_text(HOSTILE)
    assert page.evaluate("window.hacked") is None
    page.locator("#person input").click()
    page.get_by_role("option", name=HOSTILE).click()
    page.get_by_role("button", name="Disable").click()
    expect(page.locator("#person-notice")).to_contain_text("They are logged out")
    newcomer.goto(app.url)
    expect(newcomer).to_have_title("Log in · Preference Loop")
    context.close()


def test_a_lead_sets_up_a_project(make_app: MakeApp, page: Page) -> None:
    app = make_app(seed_rows(4))
    page.goto(app.url)
    page.locator(".card").first.wait_for()
    for key in "1234":
        page.keyboard.press(key)
    submit(page)
    open_team(page, app)
    page.get_by_role("button", name="Settings").first.click()
    # the settings come a moment after the tab; what is typed before would be overwritten
    expect(page.locator("#project-settings").get_by_label("Name")).to_have_value("First project")
    page.get_by_label("Annotators a task").fill("3")
    page.get_by_label("Known answers before real work").fill("2")
    page.get_by_role("button", name="Save settings").click()
    expect(page.locator("#project-saved")).to_contain_text("2 known answers come first and the project has 0")
    assert app.query("SELECT overlap, qualification FROM projects") == [{"overlap": 3, "qualification": 2}]

    page.get_by_role("button", name="Guidelines").last.click()
    expect(page.locator("#guidelines-text textarea")).to_be_visible()
    page.wait_for_timeout(500)  # a field that is just made still gets its first value
    page.locator("#guidelines-text textarea").fill("# Be fair\n\nRead everything.")
    page.get_by_role("button", name="Save as a new version").click()
    expect(page.locator("#guidelines-notice")).to_contain_text("This is version 1 now")

    page.get_by_role("button", name="Known answers").click()
    expect(page.locator("#gold-ranked input")).to_be_visible()
    page.wait_for_timeout(500)
    page.locator("#gold-ranked input").click()
    page.get_by_role("option", name="Question 1").click()
    page.get_by_role("button", name="Make that ranking the known answer").click()
    expect(page.locator("#gold-notice")).to_contain_text("has the known answer")
    page.get_by_label("Or any task, by its number").fill("2")
    page.get_by_role("button", name="Show the task").click()
    expect(page.locator("#gold-shown")).to_contain_text("Question 2")
    page.get_by_label("Ranks of its completions").fill("1 2 x -")
    page.get_by_role("button", name="Make these the known answer").click()
    expect(page.locator("#gold-notice")).to_contain_text("'x' is no rank")
    page.get_by_label("Ranks of its completions").fill("1 2 2 -")
    page.get_by_role("button", name="Make these the known answer").click()
    expect(page.locator("#gold-notice")).to_contain_text("Task 2 has the known answer 1 2 2 –")
    assert len(app.query("SELECT id FROM tasks WHERE gold_ranks IS NOT NULL")) == 2

    page.get_by_label("Or a new one, called").fill(HOSTILE)
    page.get_by_role("button", name="Create project").click()
    expect(page.locator("#projects-table")).to_contain_text(HOSTILE)
    page.get_by_label("Or a new one, called").fill("first project")
    page.get_by_role("button", name="Create project").click()
    expect(page.locator("#project-notice")).to_contain_text("choose another name")
    assert page.evaluate("window.hacked") is None


def test_a_researcher_makes_uses_and_revokes_a_token(make_app: MakeApp, page: Page) -> None:
    app = make_app(seed_rows(1))
    with store_of(app) as store:
        users.add_user(store, "rex", "researcher", "correct horse")
    page.goto(app.url)
    page.get_by_label("Name").fill("rex")
    page.get_by_label("Password").fill("correct horse")
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("tab", name="Team", exact=True).click()
    expect(page.locator("#tokens-table")).to_contain_text("You have no token")
    page.get_by_role("button", name="Make a token").click()
    expect(page.locator("#token-made")).to_contain_text("needs 1 to 100 characters")
    page.get_by_label("The program's name").fill(HOSTILE)
    page.get_by_role("button", name="Make a token").click()
    secret = page.get_by_label("New token").input_value()
    table = page.locator("#tokens-table")
    expect(table).to_contain_text(HOSTILE)
    expect(table).to_contain_text("what you may do as researcher")
    expect(page.locator("#team-leads")).to_have_count(0)  # projects and people are for leads
    expect(table).to_contain_text("never")
    assert app.query("SELECT round((expires_at - created_at) / 86400) AS days FROM tokens") == [{"days": 90}]

    def asked() -> int:
        return httpx.get(f"{app.url}/api/v1/me", headers={"Authorization": f"Bearer {secret}"}).status_code

    assert asked() == 200
    page.get_by_role("tab", name="Rank", exact=True).click()
    page.get_by_role("tab", name="Team", exact=True).click()
    expect(table).not_to_contain_text("never")  # it was used
    expect(page.get_by_label("New token")).to_have_count(0)
    assert secret not in page.content()

    page.get_by_role("button", name="Revoke it").click()
    expect(page.locator("#token-notice")).to_contain_text("Choose a token first")
    page.locator("#token-chosen input").click()
    page.get_by_role("option", name=HOSTILE).click()
    page.get_by_role("button", name="Revoke it").click()
    expect(page.locator("#token-notice")).to_contain_text("worthless from now on")
    expect(table).to_contain_text("You have no token")
    assert asked() == 401
    assert page.evaluate("window.hacked") is None
