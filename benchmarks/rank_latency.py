"""How long a person waits for the next task.

    python -m benchmarks.rank_latency [--tasks 21] [--length 1500] [--reading 1]

A real app, a real Chromium, Ctrl+Enter as a person presses it, after some time to read in which the app makes the next
task ready (`--reading 0`: a person who does not read). Measured inside the page, from the key to the frame
after the next prompt is on screen; each label is on disk before the next task is shown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.browser.conftest import FLAGS, App, chromium_path, seed_rows
from tests.browser.ranking import open_rank

PIECE = (
    "Go to bed at the same **hour** every day, and keep the room dark and quiet.\n\n" * 8
    + "It takes $t = x^2$ minutes:\n\n```python\ndef minutes(x):\n    return x**2  # more or less\n```\n\n"
)

# resolves to the milliseconds from Ctrl+Enter to the frame in which another prompt is shown
MEASURE = """() => new Promise((done) => {
  const shown = () => document.querySelector('.prompt')?.textContent;
  const before = shown();
  let start = 0;
  addEventListener('keydown', (key) => (start ||= key.key === 'Enter' ? performance.now() : 0), true);
  const look = () => (start && shown() && shown() !== before)
    ? requestAnimationFrame(() => done(performance.now() - start))
    : requestAnimationFrame(look);
  look();
})"""


def wait_for_next(page: Page, reading: float) -> float:
    """Milliseconds from submit to the next task on screen, after `reading` seconds."""
    page.wait_for_timeout(1000 * reading)
    for key in "1234":
        page.keyboard.press(key)
    page.evaluate(f"() => {{ window.measured = ({MEASURE})(); }}")
    page.keyboard.press("Control+Enter")
    took: float = page.evaluate("() => window.measured")
    return took


def main() -> None:
    """Print one JSON object: median, 90th percentile and the longest wait in ms, and how many were measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=21, help="one more than is measured")
    parser.add_argument("--length", type=int, default=1500, help="characters of a completion")
    parser.add_argument("--reading", type=float, default=1.0, help="seconds before the first key")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        app = App(Path(folder) / "workspace", "no-model")
        text = (PIECE * (options.length // len(PIECE) + 1))[: options.length]
        app.import_rows(seed_rows(options.tasks, [f"{letter}: {text}" for letter in "abcd"]))
        app.start()
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        open_rank(page, app)
        took = sorted(wait_for_next(page, options.reading) for _ in range(options.tasks - 1))
        browser.close()
        app.stop()
    result = {
        "median_ms": round(statistics.median(took), 1),
        "p90_ms": round(took[int(len(took) * 0.9)], 1),
        "max_ms": round(took[-1], 1),
        "n": len(took),
        "characters": options.length,
        "reading_s": options.reading,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
