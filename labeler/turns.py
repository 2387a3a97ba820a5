"""Whose turn it is to compute: a lock that goes to whoever has waited longest."""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """Used as `with turns:`. threading.Lock may be given to the same thread again and again while others wait.

    Whoever asks again after each token stands at the end of the queue again, so that everybody's answer grows alike.
    """

    def __init__(self) -> None:
        self._queue: deque[threading.Lock] = deque()  # of those who wait; the first one has its turn
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        mine = threading.Lock()
        mine.acquire()
        with self._lock:
            self._queue.append(mine)
            alone = len(self._queue) == 1
        if not alone:
            mine.acquire()  # until the one before releases it

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._queue.popleft()
            if self._queue:
                self._queue[0].release()
