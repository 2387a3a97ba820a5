"""What a run uses of this machine: memory and processor, as the system counts them."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

import psutil

AGAIN_SECONDS = 0.5
"""Looks that are closer together share one figure: too short a while says nothing."""


class Usage(NamedTuple):
    """Bytes of resident memory (pages that processes share count in each), cores kept busy since the last look (None at
    the first), the machine's cores, and the bytes that are still free on it."""

    memory: int
    busy: float | None
    cores: int
    free: int


_seen: dict[int, tuple[float, float, float | None]] = {}  # pid -> (when, seconds of processor until then, cores busy)
_lock = threading.Lock()


def usage(pid: int | None, started: float | None) -> Usage | None:
    """Of the process that began at `started` and those below it; None where there is none on this machine."""
    if pid is None or started is None:
        return None
    try:
        top = psutil.Process(pid)
        if abs(top.create_time() - started) > 2:  # the pid is another's by now
            return None
        memory, seconds = 0, 0.0
        for process in [top, *top.children(recursive=True)]:
            with process.oneshot():
                memory += process.memory_info().rss
                times = process.cpu_times()
                seconds += times.user + times.system
    except psutil.Error:
        _seen.pop(pid, None)
        return None
    return Usage(memory, _busy(pid, seconds), psutil.cpu_count() or 1, psutil.virtual_memory().available)


def _busy(pid: int, seconds: float) -> float | None:
    """Cores kept busy since the last look; several pages that look share it."""
    now = time.monotonic()
    with _lock:
        when, before, busy = _seen.get(pid, (now - 1, seconds, None))
        if pid in _seen:
            if now - when < AGAIN_SECONDS:
                return busy
            busy = max(0.0, (seconds - before) / (now - when))
        for other in [other for other in _seen if not psutil.pid_exists(other)]:
            del _seen[other]
        _seen[pid] = (now, seconds, busy)
        return busy


def in_words(found: Usage) -> str:
    """ "1.9 GB of memory, 12 GB free · 1.8 of 2 cores"."""
    words = f"{gigabytes(found.memory)} of memory, {gigabytes(found.free)} free"
    return words if found.busy is None else f"{words} · {found.busy:.1f} of {found.cores} cores"


def gigabytes(number: int) -> str:
    """ "1.9 GB"; below a tenth of one in MB."""
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.0f} MB"
