"""The run folder: config.json, status.json, metrics.jsonl, log.txt, checkpoints/, state/. All a run leaves behind.

Whoever watches a run (the labeler's worker, a person) only reads these files; SIGTERM asks it to save and stop.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from data.preferences import file_sha256
from data.records import InputError
from training.config import TrainingConfig, to_dict

HEARTBEAT_SECONDS = 4.0
FIXED = ("seed", "batch_size", "fold", "validation_fraction", "max_length", "from_checkpoint", "lora_rank")
"""Settings that a resumed run must share with its beginning."""


class Diverged(InputError):
    """The loss or a gradient is not finite."""


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that readers see the old or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(value, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_status(folder: Path | str) -> dict[str, Any] | None:
    """The run's status.json, or None where there is none yet."""
    try:
        return json.loads((Path(folder) / "status.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def read_metrics(folder: Path | str, after_line: int = 0) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl after the first `after_line`; a last line still being written is left for later."""
    return _read_lines(Path(folder) / "metrics.jsonl")[after_line:]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def checkpoints(folder: Path | str) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted((Path(folder) / "checkpoints").glob("step-*/"), key=lambda path: path.name)


def read_manifest(checkpoint: Path | str) -> dict[str, Any]:
    """A checkpoint's manifest.json. Raises InputError where the folder is no checkpoint of ours."""
    try:
        return json.loads((Path(checkpoint) / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{checkpoint}: is no checkpoint (it holds no manifest.json)") from None


class Run:
    """One training run and its folder. Use as a context manager: leaving it writes the final status.

    Of several processes each has a Run, so that the loops need not know; only the main one's locks and writes.
    """

    def __init__(self, config: TrainingConfig, method: str, resume: bool = False) -> None:
        from training import processes  # and torch with it, which those who only read a run folder do without

        if not config.output:
            raise InputError("name the run folder with --output")
        if not config.data:
            raise InputError("name the training data with --data")
        self.folder = Path(config.output)
        self.config, self.method, self.resume = config, method, resume
        self.writes, self._anywhere = processes.is_main(), processes.anywhere
        if checkpoints(self.folder) and not resume:
            raise InputError(f"{self.folder}: holds a run already; continue it with --resume or name another folder")
        self._lock = self._take_folder() if self.writes else None
        self.data_sha256 = file_sha256(config.data) if Path(config.data).is_file() else ""
        if resume:
            self._check_resume()
        self.step = 0
        self.total_steps = 0
        self.result: dict[str, Any] | None = None
        self._message = "loading"
        self._started = time.time()
        self._first_step: tuple[float, int] | None = None
        self._stop = threading.Event()
        self._stopping = False  # agreed upon by all processes
        self._closed = threading.Event()
        self._status_lock = threading.Lock()
        self._log_file: TextIO | None = None

    def _take_folder(self) -> TextIO:
        """Make the folder and its lock; clear away what a killed run had half written."""
        try:
            for name in ("checkpoints", "state"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            lock = open(self.folder / ".lock", "w")  # noqa: SIM115 - held as long as the run
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be written ({error.strerror}); name another --output") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.folder}: another process is training here; stop it or name another folder"
            ) from None
        for partial in (self.folder / "checkpoints").glob(".partial-*"):
            shutil.rmtree(partial)
        return lock

    def _check_resume(self) -> None:
        """Going on with other data or another order of it would be another run under the same name."""
        newest = self.newest()
        if newest is None:
            return
        manifest = read_manifest(newest[0])
        before, now = manifest["config"], to_dict(self.config)
        changed = [name for name in FIXED if before.get(name) != now.get(name)]
        if manifest["method"] != self.method:
            changed.insert(0, f"the method ({manifest['method']})")
        if self.data_sha256 and manifest["data"]["sha256"] not in ("", self.data_sha256):
            changed.append("the content of the data file")
        if changed:
            raise InputError(
                f"{self.folder}: cannot be resumed, because {', '.join(changed)} changed since {newest[0].name}; "
                "use the run's own settings (its config.json) or start a new run"
            )

    # -- life ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Run:
        if self.writes:
            if not _same_file(sys.stderr, self.folder / "log.txt"):
                self._log_file = open(self.folder / "log.txt", "a", encoding="utf-8")
            write_json(self.folder / "config.json", to_dict(self.config))
            self._write_status("running")
            threading.Thread(target=self._heartbeat, daemon=True).start()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self._stop.set())
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self._closed.set()
        if error is None:
            stopped = self._stopping and self.step < self.total_steps
            self._write_status("stopped" if stopped else "finished")
        else:
            self._message = str(error) or type(error).__name__
            self.print(f"error: {self._message}")
            with contextlib.suppress(OSError):  # a full disk must not hide the error itself
                self._write_status("failed")
        if self._log_file:
            self._log_file.close()
        if self._lock:
            self._lock.close()

    @property
    def stop_requested(self) -> bool:
        """Somebody asked the run to save and stop. Every process must ask, because they answer as one."""
        self._stopping = self._stopping or self._anywhere(self._stop.is_set())
        return self._stopping

    def _heartbeat(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                self._write_status("running")

    def _write_status(self, state: str) -> None:
        if not self.writes:
            return
        with self._status_lock:
            if state == "running" and self._closed.is_set():
                return
            write_json(
                self.folder / "status.json",
                {
                    "state": state,
                    "method": self.method,
                    "step": self.step,
                    "total_steps": self.total_steps,
                    "started_at": self._started,
                    "updated_at": time.time(),
                    "eta_seconds": self.eta_seconds,
                    "pid": os.getpid(),
                    "message": self._message,
                    "result": self.result,
                },
            )

    # -- what people see ------------------------------------------------------------------------------------------

    @property
    def eta_seconds(self) -> float | None:
        """Seconds to the last step, from the speed since this process began to train."""
        if self._first_step is None or self.step <= self._first_step[1]:
            return None
        seconds, steps = time.time() - self._first_step[0], self.step - self._first_step[1]
        return round(seconds / steps * (self.total_steps - self.step), 1)

    def print(self, text: str) -> None:
        """A line for stderr and log.txt."""
        if not self.writes:
            return
        line = f"{datetime.now().strftime('%H:%M:%S')} {text}"
        print(line, file=sys.stderr, flush=True)
        if self._log_file:
            self._log_file.write(line + "\n")
            self._log_file.flush()

    def say(self, message: str) -> None:
        """What the run is doing now, in the log and in the status."""
        self._message = message
        self.print(message)
        self._write_status("running")

    def begin(self, step: int, total_steps: int) -> None:
        """Training starts after `step` steps that are already done; metrics beyond them are cut off."""
        self.step, self.total_steps = step, total_steps
        self._first_step = (time.time(), step)
        for name in ("metrics.jsonl", "samples.jsonl") if self.writes else ():
            rows = [row for row in _read_lines(self.folder / name) if step and row["step"] <= step]
            with open(self.folder / name, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.say(f"{'resuming after step ' + str(step) if step else 'training'}: {total_steps} steps")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One line of metrics.jsonl. Raises Diverged where the loss or the gradient is not finite."""
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise Diverged(
                    f"{name} is {metrics[name]} at step {step}: the training diverged; lower the learning rate "
                    f"(now {self.config.learning_rate:g}) and resume from the last checkpoint"
                )
        self.step = step
        if not self.writes:
            return
        row = {"step": step, "time": round(time.time(), 2)} | {name: _rounded(v) for name, v in metrics.items()}
        with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        shown = "  ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:6])
        eta = f"  {_minutes(self.eta_seconds)} left" if self.eta_seconds else ""
        self._message = f"step {step}/{self.total_steps}"
        self.print(f"{self._message}  {shown}{eta}")
        self._write_status("running")

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(
        self, step: int, write: Callable[[Path], None], state: Callable[[Path], None], manifest: dict[str, Any]
    ) -> Path:
        """Write checkpoints/step-N (through a temporary name) and state/step-N; prune what is too old.

        The state is put in place first: a checkpoint that is there can always be resumed from.
        """
        name = f"step-{step:06d}"
        final = self.folder / "checkpoints" / name
        if not self.writes:
            return final
        partial = self.folder / "checkpoints" / f".partial-{name}"
        state_partial = self.folder / "state" / f"partial-{name}"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            write(partial)
            write_json(partial / "manifest.json", self._manifest(step) | manifest)
            state(state_partial)
            os.replace(state_partial, self.folder / "state" / name)
            if final.exists():
                _remove(final)
            os.replace(partial, final)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            state_partial.unlink(missing_ok=True)
            raise InputError(
                f"{final}: the checkpoint could not be written ({error.strerror or error}); earlier ones are whole. "
                "Free some space and resume"
            ) from None
        for old in checkpoints(self.folder)[: -self.config.keep_checkpoints]:
            _remove(old)
            (self.folder / "state" / old.name).unlink(missing_ok=True)
        self.print(f"saved {final}")
        return final

    def _manifest(self, step: int) -> dict[str, Any]:
        import peft
        import torch
        import transformers

        return {
            "method": self.method,
            "step": step,
            "parent": self.config.from_checkpoint,
            "config": to_dict(self.config),
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "peft": peft.__version__,
            },
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def newest(self) -> tuple[Path, Path] | None:
        """(checkpoint, state) to resume from, or None where there is nothing yet."""
        for checkpoint in reversed(checkpoints(self.folder)):
            state = self.folder / "state" / checkpoint.name
            if state.exists():
                return checkpoint, state
        return None


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint so that nobody ever sees a part of it."""
    going = checkpoint.with_name(f".partial-{checkpoint.name}-old")
    os.replace(checkpoint, going)
    shutil.rmtree(going)


def every(step: int, interval: int) -> bool:
    """Whether `step` is one of the interval's steps."""
    return interval > 0 and step % interval == 0


def _rounded(value: float) -> float | None:
    return float(f"{value:.8g}") if math.isfinite(value) else None


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _same_file(stream: TextIO, path: Path) -> bool:
    """Whether `stream` already writes into `path` (the worker redirects it there)."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except (OSError, ValueError):
        return False
