"""Training and chat on the same cores: while an answer is written, each uses half of them.

Two processes with a thread a core each wait for one another at every operation, and both get a fraction of what one
core gives. So whoever answers holds a lock on a file, and a run that was told of the file (`CHAT_LOCK` in its
environment) looks at it before every forward and backward. The lock ends with its holder, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TypeVar

import torch

from training import CHAT_LOCK

T = TypeVar("T")


class _Watch:
    """What this process knows of the lock."""

    def __init__(self) -> None:
        self.file: IO[bytes] | None = None
        self.path = ""
        self.threads = 0  # before they were halved; 0 while they are not


_watch = _Watch()


def available() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def heed() -> None:
    """Halve this process's threads while somebody answers, and take them back afterwards; a few microseconds."""
    path = os.environ.get(CHAT_LOCK, "")
    if path != _watch.path:
        _watch.path, _watch.file = path, open(path, "rb") if os.path.exists(path) else None  # noqa: SIM115 - kept open
    if _watch.file is None:
        return
    answering = _held(_watch.file)
    if answering and not _watch.threads:
        _watch.threads = torch.get_num_threads()
        torch.set_num_threads(max(1, _watch.threads // 2))
    elif not answering and _watch.threads:
        torch.set_num_threads(_watch.threads)
        _watch.threads = 0


def _held(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def answering(tokens: Iterator[T], lock: Path, training: bool) -> Iterator[T]:
    """Hold `lock` while `tokens` are taken; `training`: with half of the threads, because a run uses the others."""
    threads = max(1, available() // 2) if training else available()
    with open(lock, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        while True:
            torch.set_num_threads(threads)  # of this thread: the next token may be asked for in another
            try:
                token = next(tokens)
            except StopIteration:
                return
            yield token
