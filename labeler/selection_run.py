"""A selection's process: python -m labeler.selection_run --output WORKSPACE/runs/0007-select

Writes the project's tasks to a file, has `python -m training score` score them, and hands what it says to the store.
SIGTERM ends both processes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from data.formats import read_rows, write_rows
from data.records import InputError
from labeler import jobs, selection
from labeler.local_run import Status, main
from labeler.store import Store
from labeler.workspace import DATABASE_NAME

PROGRESS = re.compile(r"(?P<what>.+): (?P<done>\d+) of (?P<total>\d+), (?P<left>\d+) s left")


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
    last = ""
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, errors="replace"
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            sys.stderr.write(line)
            last = line.strip() or last
            if found := PROGRESS.fullmatch(line.strip()):
                status.write(
                    "running",
                    message=found["what"],
                    step=int(found["done"]),
                    total_steps=int(found["total"]),
                    eta_seconds=float(found["left"]),
                )
    if child.returncode:
        raise InputError(last.removeprefix("error: ") or f"scoring ended with exit status {child.returncode}")
    rows = (row for _, row in read_rows(scored))
    return selection.apply(store, rows, config["checkpoint_id"], config["second_opinions"])


if __name__ == "__main__":
    sys.exit(main(jobs.SELECT, __doc__, run))
