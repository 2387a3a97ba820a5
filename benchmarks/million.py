"""A million comparisons in one workspace: how long the import takes, and what is still fast afterwards.

    python -m benchmarks.million --rows 1000000 [--on-error stop] [--folder DIR]

Writes made-up comparisons to a file, imports it into a new workspace in a process of its own, then measures what people
wait for: the Rank tab's next task, the Data tab's first page and searches, and exports (each in a process of its own,
for its peak memory). Prints one JSON object; times in seconds, memory in MiB. The folder is deleted afterwards.

    python -m benchmarks.million --data rankings.jsonl.gz ...

imports files of rankings instead, exports them, and says whether they came back identical.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.formats import parse_ranking, read_rows
from labeler import exports, imports, search, snapshots, tasks
from labeler.store import scalar
from labeler.ui.data import counts_html
from labeler.users import ensure_user, local_owner
from labeler.workspace import Workspace, open_workspace

ANNOTATORS, WAITING, REPEATS = 20, 1000, 20
MODEL = "no-model"


def main() -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--on-error", choices=imports.ON_ERROR, default="skip")
    parser.add_argument("--folder", type=Path, help="where to build it (a temporary folder)")
    parser.add_argument("--data", type=Path, nargs="+")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(run_step(options, *options.step)))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="million-", dir=options.folder))
    try:
        if options.data:
            print(json.dumps({file.name: comes_back(folder / file.name, file) for file in options.data}))
        else:
            print(json.dumps(measure(options, folder)))
    finally:
        shutil.rmtree(folder)
    return 0


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures for made-up rows."""
    file = folder / "comparisons.jsonl"
    write_comparisons(file, options.rows)
    result: dict[str, Any] = {"rows": options.rows, "file_mib": round(file.stat().st_size / 2**20)}

    def step(name: str, argument: str) -> dict[str, Any]:
        words = ["--step", name, argument, "--folder", str(folder), "--on-error", options.on_error]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.million", *words], stdout=subprocess.PIPE, text=True, check=True
        )
        print(f"{name} {argument}: {done.stdout.strip()}", file=sys.stderr, flush=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    result["import"] = step("import", str(file))
    file.unlink()
    result["database_mib"] = round((folder / "workspace" / "preferences.sqlite").stat().st_size / 2**20)
    result["pages"] = step("pages", "")
    result["export"] = {form: step("export", form) for form in ("rankings", "conversational", "dataset")}
    return result


def run_step(options: argparse.Namespace, name: str, argument: str) -> dict[str, Any]:
    """One measurement in this process."""
    workspace = open_workspace(options.folder / "workspace", MODEL, seed_file=None)
    started = time.monotonic()
    if name == "import":
        made = imports.import_file(
            workspace.store, Path(argument), local_owner(workspace.store), on_error=options.on_error
        )
        found: dict[str, Any] = {"rankings": made.rankings, "on_error": options.on_error}
    elif name == "export":
        target = options.folder / ("export" if argument == "dataset" else "export.jsonl")
        out = exports.write_export(workspace.store, target, argument, {}, local_owner(workspace.store))
        found = {"rows": out.counts["rows"]}
    else:
        return pages(workspace)
    found["seconds"] = round(time.monotonic() - started, 1)
    found["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return found


def pages(workspace: Workspace) -> dict[str, Any]:
    """What people wait for in the pages: median and worst of some tries."""
    store = workspace.store
    with store.write() as db:
        ann = ensure_user(db, "somebody new")
        for number in range(WAITING):
            row = {"prompt": f"waiting {number}", "completions": ["one", "two"]}
            imports.import_row(db, row, ann, "import", imports.Imported())
    word, rare = "w1", "needle"
    looks: dict[str, Callable[[], Any]] = {
        "next_task": lambda: tasks.next_assignment(store, ann),
        "progress": lambda: tasks.progress(store, ann),
        "counts": lambda: counts_html(workspace),
        "count_preferences": lambda: snapshots.count(store, kinds=["preferences"]),
        "first_page": lambda: search.find(store, search.Query()),
        "search_common_word": lambda: search.find(store, search.Query(words=word)),
        "search_rare_word": lambda: search.find(store, search.Query(words=rare)),
        "search_missing_word": lambda: search.find(store, search.Query(words="nowhere")),
        "search_phrase": lambda: search.find(store, search.Query(words='"w1 w2"')),
        "search_word_of_one_annotator": lambda: search.find(store, search.Query(words=word, annotator="annotator 3")),
        "annotator": lambda: search.find(store, search.Query(annotator="annotator 3")),
        "before_everything": lambda: search.find(store, search.Query(until=1.0)),
        "base_checkpoint": lambda: search.find(store, search.Query(checkpoint_id=1)),
        "low_agreement": lambda: search.find(store, search.Query(agreement="low")),
    }
    return {name: timed(look) for name, look in looks.items()}


def timed(look: Callable[[], Any]) -> dict[str, float]:
    """Median and worst seconds."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        look()
        times.append(time.perf_counter() - started)
        if sum(times) > 20:
            break
    return {"median": round(statistics.median(times), 4), "worst": round(max(times), 4)}


def write_comparisons(file: Path, count: int) -> None:
    """Different prompts with two answers each; words as frequent as in a language, one prompt with "needle"."""
    random_ = random.Random(0)
    words = [f"w{number}" for number in range(1, 20_001)]
    weights = [1 / number for number in range(1, 20_001)]
    with open(file, "w", encoding="utf-8") as out:
        for number in range(count):
            drawn = random_.choices(words, weights, k=80)
            row = {
                "prompt": f"{'needle ' if number == count // 3 else ''}{' '.join(drawn[:20])} {number}?",
                "chosen": " ".join(drawn[20:50]),
                "rejected": " ".join(drawn[50:]),
                "annotator": f"annotator {number % ANNOTATORS}",
            }
            out.write(json.dumps(row) + "\n")


def comes_back(folder: Path, file: Path) -> dict[str, Any]:
    """Import a file of rankings, export it, and compare prompts, completions and ranks as sets of rows."""
    workspace = open_workspace(folder, MODEL, seed_file=None)
    owner = local_owner(workspace.store)
    made = imports.import_file(workspace.store, file, owner)
    exports.write_export(workspace.store, folder / "back.jsonl", "rankings", {}, owner)
    before, after = ({_said(row) for _, row in read_rows(path)} for path in (file, folder / "back.jsonl"))
    total = scalar(workspace.store.db, "SELECT count(*) FROM tasks")
    return {"rows": made.rows, "rankings": made.rankings, "tasks": total, "identical": before == after}


def _said(row: dict[str, Any]) -> str:
    ranking = parse_ranking(row)
    return json.dumps([ranking.prompt.messages, ranking.completions, ranking.ranks], ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())
