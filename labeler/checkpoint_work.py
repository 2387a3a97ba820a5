"""What takes longer than a click: merging, evaluating, importing or pushing a checkpoint, each a process of its own.

A work's folder holds config.json, status.json, log.txt and a lock that the process holds while it lives, so that any
app, also after a restart, sees whether it still goes on. `labeler.checkpoint_run` is the process.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data.records import InputError
from labeler import jobs
from labeler.workspace import Workspace
from training.files import write_json

KINDS = ("merge", "evaluate", "import", "push")
_children: list[subprocess.Popen[bytes]] = []
"""Kept until they have ended and are reaped."""


@dataclass(frozen=True)
class Work:
    """Where a work stands. `state` is running, finished, failed or interrupted; `done` of `total` where it is known."""

    kind: str
    state: str
    message: str
    done: int | None
    total: int | None
    started_at: float
    result: dict[str, Any]


def folder_of(workspace: Workspace, kind: str, key: str | int) -> Path:
    """`key` is a checkpoint's id or, for an import, the name of what was staged."""
    return workspace.folder / "work" / f"{kind}-{key}"


def start(workspace: Workspace, kind: str, key: str | int, config: dict[str, Any]) -> None:
    """Start the process, unless it runs already. Raises InputError where it cannot be started."""
    folder = folder_of(workspace, kind, key)
    _children[:] = [child for child in _children if child.poll() is None]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:
            if not _take(lock):
                return
            for path in folder.iterdir():
                if path.is_dir():  # what a killed process left
                    shutil.rmtree(path)
            busy = bool(jobs.list_jobs(workspace.store, ["running"]))
            known = {"kind": kind, "workspace": str(workspace.folder), "base_model": workspace.base_model}
            write_json(folder / "config.json", known | {"num_threads": 1 if busy else 0} | config)
            write_json(folder / "status.json", {"state": "running", "message": "starting", "started_at": time.time()})
            with open(folder / "log.txt", "wb") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", "labeler.checkpoint_run", "--folder", str(folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=jobs.PROJECT,
                    pass_fds=[lock.fileno()],  # the lock is the child's as well, and is free when both have let go
                    start_new_session=True,
                )
            _children.append(child)
            write_json(folder / "process.json", {"pid": child.pid})
    except OSError as error:
        raise InputError(f"it could not be started ({error.strerror or error}); free some space, then again") from None


def look(workspace: Workspace, kind: str, key: str | int) -> Work | None:
    """Where it stands; None where there never was one."""
    folder = folder_of(workspace, kind, key)
    try:
        running = _held(folder)
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    state, message = str(status["state"]), str(status.get("message") or "")
    if state == "running" and not running:
        state, message = "interrupted", "the process ended without saying why, often for lack of memory; start it again"
    result = status.get("result") or {}
    return Work(kind, state, message, status.get("done"), status.get("total"), status["started_at"], result)


def running(workspace: Workspace, key: str | int) -> list[str]:
    """The kinds of work that go on with a checkpoint."""
    found = [(kind, look(workspace, kind, key)) for kind in KINDS]
    return [kind for kind, work in found if work is not None and work.state == "running"]


def stop(workspace: Workspace, kind: str, key: str | int) -> None:
    """End it; what it had made is thrown away."""
    folder = folder_of(workspace, kind, key)
    work = look(workspace, kind, key)
    if work is None or work.state != "running":
        return
    try:
        pid = int(json.loads((folder / "process.json").read_text(encoding="utf-8"))["pid"])
        os.killpg(pid, signal.SIGKILL)  # it holds the lock, so the pid is still its own
    except (OSError, ValueError, KeyError):
        return
    write_json(folder / "status.json", {"state": "failed", "message": "stopped", "started_at": work.started_at})


def _take(lock: IO[str]) -> bool:
    for _ in range(20):  # somebody may just be looking
        with _tried(lock, fcntl.LOCK_EX) as got:
            if got:
                return True
        time.sleep(0.01)
    return False


def _held(folder: Path) -> bool:
    with open(folder / "lock") as lock, _tried(lock, fcntl.LOCK_SH) as got:
        return not got


@contextmanager
def _tried(lock: IO[str], how: int) -> Iterator[bool]:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
