"""control.json in the run folder: how the outside asks a running job to save, stop, pause or use fewer threads.

A file reaches a run where a signal does not: through ssh, srun, or a launcher with processes of its own. Example:
`echo '{"pause": true}' > runs/7/control.json`. It is looked at between two steps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Wishes(NamedTuple):
    """What is asked for. `stop` and `save` are done once for each writing of the file, `pause` lasts."""

    stop: bool = False
    save: bool = False
    pause: bool = False
    num_threads: int | None = None


class Control:
    """Reads the file when it has changed; a mistake in it is said once and changes nothing."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path, self.say = path, say
        self._seen: tuple[int, int] | None = None
        self._wishes = Wishes()

    def read(self) -> Wishes:
        """The wishes now."""
        try:
            found = os.stat(self.path)
        except OSError:
            self._seen, self._wishes = None, Wishes()
            return self._wishes
        mark = found.st_mtime_ns, found.st_size
        if mark == self._seen:
            return self._wishes._replace(stop=False, save=False, num_threads=None)
        self._seen = mark
        try:
            self._wishes = _parse(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self.say(f"{self.path.name} is not followed: {error}")
            return self._wishes._replace(stop=False, save=False, num_threads=None)
        return self._wishes

    def forget_stop(self) -> None:
        """Take a request to stop away once it is done, so that a resume goes on."""
        if self._wishes.stop:
            self.path.unlink(missing_ok=True)


def _parse(text: str) -> Wishes:
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("it must hold one JSON object")
    unknown = sorted(set(values) - set(Wishes._fields))
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is unknown; use {', '.join(Wishes._fields)}")
    for name in ("stop", "save", "pause"):
        if not isinstance(values.get(name, False), bool):
            raise ValueError(f"{name} must be true or false")
    count = values.get("num_threads")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= 4096):
        raise ValueError("num_threads must be a whole number from 0 to 4096")
    return Wishes(**values)
