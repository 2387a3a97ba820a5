"""A selection's process: python -m labeler.selection_run --output WORKSPACE/runs/0007-select

Writes the project's tasks to a file, has `python -m training score` score them, and hands what it says to the store.
SIGTERM ends both processes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from data.formats import read_rows, write_rows
from labeler import jobs, selection
from labeler.local_run import Status, follow, main
from labeler.store import Store
from labeler.workspace import DATABASE_NAME


def run(folder: Path, status: Status) -> dict[str, Any]:
    """Score and order; what came of it. Raises InputError with the scorer's own last line where that fails."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    store = Store(folder.parent.parent / DATABASE_NAME)
    tasks, scored = folder / "tasks.jsonl", folder / "scores.jsonl"
    if not write_rows(tasks, selection.task_rows(store, config["project_id"])):
        return selection.apply(store, [], config["checkpoint_id"])
    words = [*jobs.PROGRAM, "score", "--skip-errors"]
    for flag, value in {
        "checkpoint": config["checkpoint"],
        "data": tasks,
        "output": scored,
        "heads": config["heads"],
        "head-data": config["data"],
        "seed": config["seed"],
    }.items():
        words += [f"--{flag}", str(value)]
    follow(words, status)
    rows = (row for _, row in read_rows(scored))
    return selection.apply(store, rows, config["checkpoint_id"], config["second_opinions"])


if __name__ == "__main__":
    sys.exit(main(jobs.SELECT, __doc__, run))
