"""The run folder: config.json, status.json, metrics.jsonl, log.txt, checkpoints/, state/. All a run leaves behind.

Whoever watches a run (the labeler's worker, a person) only reads these files, by `run_folder`; SIGTERM or control.json
asks it to save and stop.
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
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import peft
import torch
import transformers

from data.preferences import file_sha256
from data.records import InputError
from training import processes
from training.config import TrainingConfig
from training.control import Control, Wishes
from training.files import remove, sync, write_json, written
from training.knobs import to_dict
from training.run_folder import (
    JUDGED_BY,
    best_checkpoint,
    checkpoints,
    continued_lora,
    judged,
    lineage,
    read_lines,
    read_manifest,
)

HEARTBEAT_SECONDS = 4.0
PAUSE_SECONDS = 0.5
FIXED = (
    "seed", "batch_size", "fold", "validation_fraction", "max_length", "from_checkpoint", "lora_rank", "lora_alpha",
    "lora_dropout", "lora_targets", "lora_layers", "use_rslora",
)  # fmt: skip
"""Settings that a resumed run must share with its beginning."""
WINDOW = 5
"""A run has diverged when the mean loss of this many steps is above three times its first step's loss plus 3 nats.

A language model that forgets everything goes from about 2 to ln V, about 11; one that guesses preferences has 0.69.
"""


class Diverged(InputError):
    """The loss or a gradient is not finite, or the loss has blown up."""


class Run:
    """One training run and its folder. Use as a context manager: leaving it writes the final status.

    Of several processes each has a Run, so that the loops need not know; only the main one's locks and writes.
    """

    def __init__(self, config: TrainingConfig, method: str, resume: bool = False) -> None:
        if not config.output:
            raise InputError("name the run folder with --output")
        if not config.data:
            raise InputError("name the training data with --data")
        self.folder = Path(config.output)
        self.config, self.method, self.resume = config, method, resume
        self.writes, self._anywhere, self._from_main = processes.is_main(), processes.anywhere, processes.from_main
        if checkpoints(self.folder) and not resume:
            raise InputError(f"{self.folder}: holds a run already; continue it with --resume or name another folder")
        self._lineage = lineage(config.from_checkpoint)
        if config.from_checkpoint:  # an adapter that is continued brings its own settings
            for name, value in continued_lora(config.from_checkpoint).items():
                setattr(config, name, value)
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
        self._control = Control(self.folder / "control.json", self.print)
        self._judge = ""  # the name of the metric that counts
        self._judged: list[float] = []  # its values, lower is better
        self._losses: list[float] = []
        self._closed = threading.Event()
        self._status_lock = threading.Lock()
        self._log_file: TextIO | None = None
        self._tracker: Any = None
        if self.writes and config.report_to != "none":
            from training.trackers import Tracker  # slow to import, and rarely wanted

            self._tracker = Tracker(config.report_to, self.folder, to_dict(config), self.print)

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
        changed = [name for name in FIXED if name in before and before[name] != now[name]]
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
        if self._tracker:
            self._tracker.close()
        if error is None:
            stopped = self._stopping and self.step < self.total_steps
            self._write_status("stopped" if stopped else "finished")
        else:
            self._message = str(error) or type(error).__name__
            self.print(f"error: {self._message}")
            with contextlib.suppress(InputError):  # a full disk must not hide the error itself
                self._write_status("failed")
        if self._log_file:
            self._log_file.close()
        if self._lock:
            self._lock.close()

    def listen(self) -> Wishes:
        """What the outside asks for, between two steps: SIGTERM, control.json. Waits here while the run is paused.

        Every process must ask, because they act as one. A save that is asked for with a pause is done after it.
        """
        paused = save = False
        while True:
            wishes = self._from_main(self._control.read() if self.writes else Wishes())
            save = save or wishes.save
            wishes = wishes._replace(save=save)
            if wishes.num_threads is not None:
                processes.set_threads(wishes.num_threads)
            if wishes.stop or self._anywhere(self._stop.is_set()):
                self._stopping = True
                self._control.forget_stop()
                return wishes._replace(stop=True)
            if not wishes.pause:
                if paused:
                    self.say("going on")
                return wishes
            if not paused:
                paused = True
                self.say("paused")
            time.sleep(PAUSE_SECONDS)

    @property
    def out_of_patience(self) -> bool:
        """Whether the last `patience` evaluations brought nothing better."""
        best = self._judged.index(min(self._judged)) if self._judged else 0
        return 0 < self.config.patience <= len(self._judged) - 1 - best

    def _heartbeat(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(InputError):
                self._write_status("running")

    def _write_status(self, state: str) -> None:
        if not self.writes:
            return
        with self._status_lock, written(self.folder / "status.json"):
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
        with contextlib.suppress(OSError):  # a full disk is told by what must be written
            self._print(text)

    def _print(self, text: str) -> None:
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
        if self.writes:
            for name in ("samples.jsonl", "metrics.jsonl"):
                rows = [row for row in read_lines(self.folder / name) if step and row["step"] <= step]
                with written(self.folder / name) as path:
                    partial = path.with_name(f".{name}")
                    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
                    os.replace(partial, path)
            for row in rows:
                self._remember(row)
        self._judge, self._judged, self._losses = self._from_main((self._judge, self._judged, self._losses))
        self.say(f"{'resuming after step ' + str(step) if step else 'training'}: {total_steps} steps")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One line of metrics.jsonl. Raises Diverged where the loss or the gradient is not finite, or it blew up."""
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise self._diverged(f"{name} is {metrics[name]} at step {step}")
        self.step = step
        row = {"step": step, "time": round(time.time(), 2)} | {name: _rounded(v) for name, v in metrics.items()}
        self._remember(row)
        if self.method != "ppo" and len(self._losses) > WINDOW:  # PPO's loss is no measure of anything
            first, now = self._losses[0], sum(self._losses[-WINDOW:]) / WINDOW
            if now > 3 * first + 3:
                raise self._diverged(f"the loss rose from {first:.4g} to {now:.4g} by step {step}")
        if not self.writes:
            return
        with written(self.folder / "metrics.jsonl") as path, open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self._tracker:
            self._tracker.log(step, metrics)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:6])
        eta = f"  {_minutes(self.eta_seconds)} left" if self.eta_seconds else ""
        self._message = f"step {step}/{self.total_steps}"
        self.print(f"{self._message}  {shown}{eta}")
        self._write_status("running")

    def _remember(self, row: Mapping[str, Any]) -> None:
        """What patience and divergence are judged by; the rows of metrics.jsonl hold all of it, so a resume repeats."""
        self._judge = self._judge or next((name for name in JUDGED_BY[self.method] if name in row), "")
        value = judged(self._judge, row)
        if value is not None:
            self._judged.append(value)
        if row.get("loss") is not None:
            self._losses = [*self._losses[:1], *self._losses[1:][1 - WINDOW :], row["loss"]]

    def _diverged(self, what: str) -> Diverged:
        return Diverged(
            f"{what}: the training diverged; lower learning_rate (now {self.config.learning_rate:g}) or raise "
            "warmup_ratio, and start again or from an earlier checkpoint (--from-checkpoint); those that are saved are "
            "whole"
        )

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def save_checkpoint(
        self, step: int, write: Callable[[Path], None], state: Callable[[Path], None], manifest: dict[str, Any]
    ) -> Path:
        """Write checkpoints/step-N (through a temporary name) and state/step-N; prune what is neither new nor best.

        Everything is on the disk before it gets its name, so that not even a power cut leaves a part. The state is put
        in place first: a checkpoint that is there can always be resumed from.
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
            for path in (*partial.rglob("*"), partial, state_partial):
                sync(path)
            os.replace(state_partial, self.folder / "state" / name)
            if final.exists():
                remove(final)
            os.replace(partial, final)
            for path in (final.parent, self.folder / "state"):
                sync(path)
        except Exception as error:  # torch, safetensors and tokenizers each tell a full disk in their own way
            shutil.rmtree(partial, ignore_errors=True)
            state_partial.unlink(missing_ok=True)
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise InputError(
                f"{final}: the checkpoint could not be written ({reason}); earlier ones are whole. Free some space and "
                "resume"
            ) from None
        best = best_checkpoint(self.folder, self.method)
        for old in checkpoints(self.folder)[: -self.config.keep_checkpoints]:
            if old == best:
                continue
            remove(old)
            (self.folder / "state" / old.name).unlink(missing_ok=True)
        self.print(f"saved {final}")
        return final

    def _manifest(self, step: int) -> dict[str, Any]:
        return {
            "method": self.method,
            "step": step,
            "parent": self.config.from_checkpoint,
            "lineage": self._lineage,
            "config": to_dict(self.config),
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "peft": peft.__version__,
            },
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def finish(self, checkpoint: Path | None, metrics: Mapping[str, float]) -> dict[str, Any]:
        """The result that ends the command's output: the last and the best checkpoint, steps, metrics."""
        best = best_checkpoint(self.folder, self.method)
        if self.out_of_patience and self.step < self.total_steps:
            self.say(f"stopped early: nothing better in the last {self.config.patience} evaluations")
        self.result = {"checkpoint": str(checkpoint), "best_checkpoint": str(best) if best else None}
        self.result |= {"steps": self.step} | dict(metrics)
        return self.result

    def newest(self) -> tuple[Path, Path] | None:
        """(checkpoint, state) to resume from, or None where there is nothing yet."""
        for checkpoint in reversed(checkpoints(self.folder)):
            state = self.folder / "state" / checkpoint.name
            if state.exists():
                return checkpoint, state
        return None


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
