"""Carries out the queued runs, one at a time, each in a process that outlives the app.

The worker only starts processes, looks at them and at their run folders, and notes in the store what it sees. So
it may die at any moment: the run goes on, and the next worker takes it up again. Between two starts of the app, or
with two apps on one workspace, a lock file lets one worker at a time do this.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import IO, Any

import psutil

from data.records import InputError
from labeler import chains, checkpoints, jobs
from labeler.jobs import Job
from labeler.workspace import Workspace
from training import CHAT_LOCK, run_folder
from training.files import write_json

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
GRACE_SECONDS = 60.0
"""How long a run may take to save its checkpoint after it was asked to stop."""
ASK_AGAIN_SECONDS = 5.0
"""A signal that came before the trainer listened is lost, so it is repeated."""
CONTROL = "control.json"
"""What the trainer reads between steps. It reaches a run behind a launcher, which would be cut short by a signal."""

_children: dict[int, subprocess.Popen[bytes]] = {}
"""The processes that this process started and has not reaped yet, whichever Worker object did."""


class Worker:
    """start() begins to look after the workspace's runs in a thread; stop() leaves the runs as they are."""

    def __init__(self, workspace: Workspace, poll_seconds: float = POLL_SECONDS, grace: float = GRACE_SECONDS) -> None:
        self.workspace = workspace
        self.poll_seconds = poll_seconds
        self.grace = grace
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock: IO[str] | None = None
        self._asked: dict[str, float] = {}  # run id -> when it was last told to stop

    def start(self) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._loop, name="worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self.release()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.acquire():
                    self.tick()
            except Exception:
                # a full disk or a busy database passes; no run may be left alone because of it
                log.exception("the worker could not do its turn; it tries again")
            self._stopping.wait(self.poll_seconds)
        self.workspace.store.close()

    def acquire(self) -> bool:
        """Become the workspace's only worker; False while another one is. The lock dies with the process."""
        if self._lock is not None:
            return True
        file = open(self.workspace.folder / "worker.lock", "w")  # noqa: SIM115 - held for the worker's life
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._lock = file
        for job in jobs.list_jobs(self.workspace.store):  # what was saved while nobody looked
            checkpoints.register_run(self.workspace, job.id, job.parent_checkpoint_id)
        return True

    def release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def tick(self) -> None:
        """One turn: look at the run that is going; if there is none, start the next that waits."""
        running = jobs.list_jobs(self.workspace.store, ["running"])
        for job in running:
            self._follow(job)
        if not running:
            claimed = jobs.claim(self.workspace.store)
            if claimed is not None:
                self._launch(claimed)

    def _folder(self, job: Job) -> Path:
        return (self.workspace.runs_folder / job.id).resolve()

    def _launch(self, job: Job) -> None:
        folder = self._folder(job)
        try:
            chains.resolve(self.workspace, job)
        except (InputError, OSError) as error:  # an unwritable or missing folder must not stop the queue
            said = str(error) if isinstance(error, InputError) else f"could not be started: {error}"
            jobs.close(self.workspace.store, job.id, "failed", said, None)
            return
        words = jobs.command(self.workspace, job)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(jobs.PROJECT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            CHAT_LOCK: str(self.workspace.chat_lock),
        }
        (folder / CONTROL).unlink(missing_ok=True)  # what was asked of the run before
        self._asked.pop(job.id, None)
        try:
            self.workspace.chat_lock.touch()
            with open(folder / "log.txt", "ab") as output:
                output.write(f"$ {jobs.command_line(self.workspace, job)}\n".encode())
                output.flush()
                child = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=jobs.PROJECT,
                    env=environment,
                    start_new_session=True,  # signals to the app do not reach the run, and the run is one group
                )
        except OSError as error:
            jobs.close(self.workspace.store, job.id, "failed", f"could not be started: {error}", None)
            return
        _children[child.pid] = child
        jobs.set_process(self.workspace.store, job.id, child.pid, _started(child.pid) or time.time())

    def _follow(self, job: Job) -> None:
        folder = self._folder(job)
        if job.pid is None:
            job = self._find(job, folder)
            if job.pid is None:
                return
        alive = _is_alive(job, folder)  # before the files are read: what a dead process wrote is final
        checkpoints.register_run(self.workspace, job.id, job.parent_checkpoint_id)
        if not alive:
            state, error, result = outcome(job, folder, _exit_code(job.pid))
            jobs.close(self.workspace.store, job.id, state, error, result)
        elif job.stop_requested_at is not None:
            overdue = time.time() - job.stop_requested_at > self.grace
            if overdue or time.monotonic() - self._asked.get(job.id, -math.inf) > ASK_AGAIN_SECONDS:
                first = job.id not in self._asked
                self._asked[job.id] = time.monotonic()
                by_launcher = bool(self.workspace.launcher) and job.method not in jobs.LOCAL
                self._ask_to_stop(job.pid, folder, first, overdue, by_launcher)

    def _ask_to_stop(self, pid: int, folder: Path, first: bool, overdue: bool, by_launcher: bool) -> None:
        """By control.json, and by SIGTERM where no launcher stands between; then by SIGKILL, its workers too.

        A launcher passes SIGTERM on, but kills the run 30 s later; ssh dies of it and leaves the run alone.
        """
        if overdue:
            _kill(pid)
            return
        if first:
            write_json(folder / CONTROL, {"stop": True})
        if not by_launcher:
            _signal_group(pid, signal.SIGTERM)

    def _find(self, job: Job, folder: Path) -> Job:
        """The worker that claimed this job died before it noted the process: find it, or put the job back."""
        found = [
            process.info
            for process in psutil.process_iter(["pid", "create_time", "cmdline"])
            if _belongs(process.info["cmdline"] or [], folder)
        ]
        if found:
            first = min(found, key=lambda info: info["create_time"])  # a launcher comes before its workers
            jobs.set_process(self.workspace.store, job.id, first["pid"], first["create_time"])
            return jobs.get(self.workspace.store, job.id)
        jobs.requeue(self.workspace.store, job.id)
        return job


def outcome(job: Job, folder: Path, exit_code: int | None) -> tuple[str, str | None, dict[str, Any] | None]:
    """(state, error, result) of a run whose process has ended.

    exit_code: negative for a signal; None where the process was not our child, so that nobody could ask.
    """
    status = read_status(folder)
    if not jobs.fresh(job, status):  # what is there was written before a resume
        status = {}
    state, result = status.get("state"), status.get("result")
    if state in ("finished", "stopped"):
        return state, None, result
    if state == "failed":
        return "failed", status.get("message") or last_line(folder), result
    if job.stop_requested_at is not None and (exit_code is None or -exit_code == signal.SIGTERM):
        return "stopped", None, None
    if exit_code is not None and exit_code > 0:
        return "failed", last_line(folder) or f"ended with exit status {exit_code}", None
    why = "the process ended without saying why"
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        why = f"the process was killed ({name})"
        if job.stop_requested_at is not None:
            why = f"the run did not stop in time and was killed ({name})"
        elif -exit_code == signal.SIGKILL:
            why += ", often for lack of memory"
    step = f" at step {status['step']} of {status['total_steps']}" if status.get("total_steps") else ""
    return "interrupted", f"{why}{step}", None


def read_status(folder: Path) -> dict[str, Any]:
    """status.json, or {} where it is missing or cannot be read."""
    try:
        return run_folder.read_status(folder) or {}
    except (OSError, ValueError):
        return {}


def last_line(folder: Path) -> str:
    """The last line of the log that says something, for people."""
    for line in reversed(log_tail(folder).splitlines()):
        if line.strip() and not line.startswith("$ "):
            return line.strip()[:500]
    return ""


def log_tail(folder: Path, size: int = 16_000) -> str:
    """The end of log.txt, at most `size` bytes, from the start of a line. Progress bars are cut to their last state."""
    try:
        with open(folder / "log.txt", "rb") as file:
            file.seek(0, os.SEEK_END)
            length = file.tell()
            file.seek(max(0, length - size))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = text.split("\n")[1 if length > size else 0 :]
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines)


def _started(pid: int) -> float | None:
    """When a process began, in unix seconds; None where there is none, or only its remains."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _belongs(words: list[str], folder: Path) -> bool:
    return str(folder) in words and "--output" in words


def _is_alive(job: Job, folder: Path) -> bool:
    """Whether the job's own process lives: same pid, same start time (within the clock's grain), same run folder."""
    assert job.pid is not None
    child = _children.get(job.pid)
    if child is not None:  # its pid cannot be another's before poll reaps it; and while it exits it has no command line
        return child.poll() is None
    started = _started(job.pid)
    if started is None or job.process_started is None or abs(started - job.process_started) > 2:
        return False
    try:
        return _belongs(psutil.Process(job.pid).cmdline(), folder)
    except psutil.Error:
        return False


def _exit_code(pid: int | None) -> int | None:
    child = _children.pop(pid, None) if pid is not None else None
    return child.poll() if child is not None else None


def _kill(pid: int) -> None:
    """End a process group, and the sessions that a launcher started for its workers."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        below = []
    _signal_group(pid, signal.SIGKILL)
    for process in below:
        try:
            process.kill()
        except psutil.Error:
            log.info("process %s is gone", process.pid)


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        log.info("process group %s is gone", pid)
