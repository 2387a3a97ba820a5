"""axe-core on every tab: no serious or critical violation, wide and narrow, light and dark."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from labeler.projects import write_guidelines
from labeler.ui import TABS
from labeler.users import local_owner
from tests.browser.conftest import PATIENCE_MS, App, MakeApp, seed_rows
from tests.browser.ranking import add_project, open_rank, press, store_of
from tests.browser.screenshots import open_tab

ANSWERS = ["**Yes**, `at` once: $x^2$.\n\n```python\nx = 'a'  # b\n```\n" + "More. " * 300, "No.", "مرحبا", "Maybe."]


@pytest.fixture(scope="module")
def app(make_app: MakeApp) -> App:
    app = make_app([row | {"ranks": [1, 2, 3, None]} for row in seed_rows(1)] + seed_rows(4, ANSWERS)[1:])
    add_project(app, "Pairs", [("Which one?", ANSWERS[:2])], question="pairwise")
    with store_of(app) as store:
        write_guidelines(store, local_owner(store), 1, "# Be kind\n\nAnd `true`.")
    return app


SETTLED = """async () => {
  const going = () => document.getAnimations().filter((each) => each instanceof CSSTransition);
  while (going().length) await Promise.all(going().map((each) => each.finished.catch(() => {})));
}"""


def violations(page: Page) -> list[str]:
    page.evaluate(SETTLED)  # a colour that is inherited follows a frame later
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:200]} {node['failureSummary'][:300]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.fixture(scope="module", params=[("light", 1440), ("dark", 1440), ("light", 390), ("dark", 390)], ids=str)
def wide_or_narrow(request: pytest.FixtureRequest, browser: Browser, app: App) -> Any:
    scheme, width = request.param
    # without motion: a colour half-way through its transition has no contrast to judge
    size = {"width": width, "height": 900}
    context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    open_rank(page, app)
    yield page
    context.close()


@pytest.mark.parametrize("tab", [name for name, _ in TABS if name != "Rank"])
def test_no_serious_violation(wide_or_narrow: Page, tab: str) -> None:
    open_tab(wide_or_narrow, tab)
    assert violations(wide_or_narrow) == []


def test_no_serious_violation_while_ranking(wide_or_narrow: Page) -> None:
    page = wide_or_narrow
    if page.get_by_role("tab", name="Rank", exact=True).first.get_attribute("aria-selected") != "true":
        open_tab(page, "Rank")
    page.locator(".card").first.focus()
    assert violations(page) == []
    for keys in ("1 2 t 1 3", "Escape d", "s", "Escape e", "Escape g", "h", "?", "? x"):
        press(page, keys)
        assert violations(page) == [], keys
    page.locator("#rank").get_by_label("Project", exact=True).select_option(label="Pairs")
    expect(page.locator(".scale")).to_be_visible()
    page.locator(".card").first.focus()
    press(page, "3")
    assert violations(page) == []
    page.locator("#rank").get_by_label("Project", exact=True).select_option(label="First project")
    expect(page.locator(".scale")).to_have_count(0)
