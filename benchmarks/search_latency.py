"""How long a person waits for a search in the Data tab.

    python -m benchmarks.search_latency [--rows 20000] [--tries 10]

A real app, a real Chromium, over made-up comparisons (those of benchmarks.million). Measured inside the page, from
Enter in the search field to the frame after the new list is on screen. Prints one JSON object in ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from benchmarks.million import write_comparisons
from labeler.imports import import_file
from labeler.users import local_owner
from labeler.workspace import open_workspace
from tests.browser.conftest import FLAGS, App, chromium_path

SEARCHES = {"common_word": "w1", "rare_word": "needle", "phrase": '"w1 w2"', "two_words": "w1 w200", "no_word": ""}
MISSING = "nowhere"
"""Between the others, because a list that does not change is not drawn again."""
FIELD = "#data-words input, #data-words textarea"

# resolves to the milliseconds from Enter to the frame after the list has changed; rejects after half a minute
MEASURE = """() => new Promise((done, fail) => {
  const shown = () => document.querySelector('#data-list').textContent;
  const before = shown();
  let start = 0;
  addEventListener('keydown', (key) => (start ||= key.key === 'Enter' ? performance.now() : 0), true);
  const look = () => {
    if (start && shown() !== before) return requestAnimationFrame(() => done(performance.now() - start));
    if (start && performance.now() - start > 30000) return fail(new Error('the list did not change'));
    requestAnimationFrame(look);
  };
  look();
})"""


def search(page: Page, words: str) -> float:
    """Milliseconds from Enter to the list of what was found. Raises playwright's Error where none came."""
    page.locator(FIELD).first.fill(words)
    page.evaluate(f"() => {{ window.measured = ({MEASURE})(); }}")
    page.keyboard.press("Enter")
    took: float = page.evaluate("() => window.measured")
    return took


def main() -> None:
    """Print median and longest wait of each kind of search."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="comparisons to search in")
    parser.add_argument("--tries", type=int, default=10, help="searches of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        app = App(Path(folder) / "workspace", "no-model")
        file = Path(folder) / "comparisons.jsonl"
        write_comparisons(file, options.rows)
        workspace = open_workspace(app.workspace, app.base_model, seed_file=None)
        import_file(workspace.store, file, local_owner(workspace.store))
        workspace.store.close()
        app.start()
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(app.url)
        page.get_by_role("tab", name="Data", exact=True).first.click()
        page.locator("#data-list details").first.wait_for()
        took: dict[str, list[float]] = {name: [] for name in (*SEARCHES, "missing_word")}
        for _ in range(options.tries):
            for name, words in SEARCHES.items():
                took["missing_word"].append(search(page, MISSING))
                took[name].append(search(page, words))
        browser.close()
        app.stop()
    found = {
        name: {"median_ms": round(statistics.median(times), 1), "max_ms": round(max(times), 1)}
        for name, times in took.items()
    }
    print(json.dumps({"rows": options.rows, "n": options.tries, **found}))


if __name__ == "__main__":
    main()
