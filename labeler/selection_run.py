"""A selection's process: python -m labeler.selection_run --output WORKSPACE/runs/0007-select

Writes the project's tasks to a file, has `python -m training score` score them, and hands what it says to the store.
Keeps to a run folder's status.json, so the worker looks after it as after a training run; SIGTERM ends both processes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from data.formats import read_rows, write_rows
from data.records import InputError
from labeler import jobs, selection
from labeler.store import Store
from labeler.workspace import DATABASE_NAME
from training.files import write_json

PROGRESS = re.compile(r"(?P<what>.+): (?P<done>\d+) of (?P<total>\d+), (?P<left>\d+) s left")


def main() -> int:
    """Carry out the selection that the folder's config.json asks for; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m labeler.selection_run", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the run's folder in the workspace")
    folder = parser.parse_args().output.resolve()
    status = Status(folder)
    try:
        result = run(folder, status)
    except InputError as error:
        status.write("failed", message=str(error))
        print(f"error: {error}", file=sys.stderr)
        return 2
    status.write("finished", result=result)
    print(json.dumps(result))
    return 0


class Status:
    """The folder's status.json."""

    def __init__(self, folder: Path) -> None:
        self.file, self.started = folder / "status.json", time.time()
        self.write("running", message="loading")

    def write(self, state: str, **more: Any) -> None:
        known = {"state": state, "method": jobs.SELECT, "pid": os.getpid(), "started_at": self.started}
        write_json(self.file, {**known, "updated_at": time.time(), **more})


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
    sys.exit(main())
