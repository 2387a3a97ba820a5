"""The page that lists the REST interface's operations."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from tests.browser.conftest import MakeApp, seed_rows


def test_the_page_lists_every_operation_and_loads_nothing_from_elsewhere(make_app: MakeApp, page: Page) -> None:
    app = make_app(seed_rows(1))
    asked: list[str] = []
    problems: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"{app.url}/api/v1/docs")
    expect(page.get_by_role("heading", name="labels")).to_be_visible()
    paths = page.evaluate("fetch('openapi.json').then(answer => answer.json()).then(found => found.paths)")
    expect(page.locator("details")).to_have_count(sum(len(methods) for methods in paths.values()))
    submit = page.locator("details", has_text="/api/v1/assignments/{assignment_id}/events")
    submit.locator("summary").click()
    expect(submit.get_by_text("lands once").first).to_be_visible()
    expect(submit.get_by_text("uuid: string").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert all(url.startswith(app.url) for url in asked)
    assert [text for text in problems if "favicon" not in text] == []
