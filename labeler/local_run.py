"""A run that trains nothing, as a process of its own: it reads and writes the store, and keeps to a run folder's
status.json, so the worker looks after it as after a training run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.records import InputError
from training.files import write_json

PROGRESS = re.compile(r"(?P<what>.+): (?P<done>\d+) of (?P<total>\d+), (?P<left>\d+) s left")


class Stopped(BaseException):
    """Somebody asked the run to stop. Raised wherever it is, so nothing may rest on being finished."""


class Status:
    """The folder's status.json."""

    def __init__(self, folder: Path, method: str) -> None:
        self.file, self.method, self.started = folder / "status.json", method, time.time()
        self.write("running", message="loading")

    def write(self, state: str, **more: Any) -> None:
        known = {"state": state, "method": self.method, "pid": os.getpid(), "started_at": self.started}
        write_json(self.file, {**known, "updated_at": time.time(), **more})


def main(method: str, description: str | None, run: Callable[[Path, Status], dict[str, Any]]) -> int:
    """Let `run` do what the config.json of the folder in --output asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, required=True, help="the run's folder in the workspace")
    folder = parser.parse_args().output.resolve()
    signal.signal(signal.SIGTERM, _stop)
    status = Status(folder, method)
    try:
        result = run(folder, status)
    except InputError as error:
        status.write("failed", message=str(error))
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped:
        status.write("stopped")
        return 0
    status.write("finished", result=result)
    print(json.dumps(result))
    return 0


def follow(words: Sequence[str], status: Status) -> dict[str, Any]:
    """Carry out a command of `python -m training`, its progress in our status and log; the result that it prints.

    Raises InputError with its own last line where it fails. It ends with us.
    """
    last, printed = "", list[str]()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace") as child:
        assert child.stdout is not None
        assert child.stderr is not None
        reader = threading.Thread(target=printed.extend, args=(child.stdout,), daemon=True)
        reader.start()
        try:
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
        except BaseException:
            child.terminate()
            raise
        reader.join()
    if child.returncode:
        raise InputError(last.removeprefix("error: ") or f"{words[2]} ended with exit status {child.returncode}")
    result: dict[str, Any] = json.loads(printed[-1])
    return result


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is asked again and again
    raise Stopped
