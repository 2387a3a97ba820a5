"""Files in: prompts, completions to rank, preferences and demonstrations. Importing twice adds nothing twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from data.records import InputError
from labeler.imports.columns import Columns
from labeler.imports.items import Item
from labeler.imports.source import Source, detect
from labeler.imports.writer import Imported, Writer, import_row
from labeler.projects import FIRST
from labeler.search import indexed_together
from labeler.store import Store
from labeler.users import User

__all__ = ["ON_ERROR", "Imported", "Progress", "import_file", "import_row"]

ON_ERROR = {
    "stop": "import everything, or nothing where a row is bad",
    "skip": "leave bad rows out and say which they were",
}
BATCH_ROWS, BATCH_CHARACTERS = 1000, 2_000_000
BREATH = 0.3
"""Share of the time of writing a batch for which the database is left to annotators before the next one."""


@dataclass(frozen=True)
class Progress:
    """How far an import is: `stage` is "checking" or "writing"; `total` rows as far as known."""

    stage: str
    rows: int
    total: int | None
    seconds: float

    @property
    def left(self) -> float | None:
        """Seconds to the end of this stage, once they can be told."""
        if not self.total or not self.rows or self.seconds < 1:
            return None
        return self.seconds * max(0, self.total - self.rows) / self.rows


Watch = Callable[[Progress], bool]
"""Is told of the progress after every batch, and says whether to go on."""


def import_file(
    store: Store,
    path: Path,
    user: User,
    source: str = "import",
    project_id: int = FIRST,
    *,
    on_error: str = "stop",
    mapping: Columns | None = None,
    watch: Watch | None = None,
) -> Imported:
    """Import the rows of a file or folder of any kind that `detect` knows. Tasks go to that project.

    A row holds a prompt alone, a prompt and completions to rank, a preference (`chosen` and `rejected`, or
    `completions` and `ranks`; optional `annotator`, `weight`, `margin`, `comment`), or a demonstration (`completion`).
    `on_error`: "stop" checks every row first, then writes all of them in one transaction; InputError with file and
    line at the first bad row, and nothing is imported. "skip" writes in small transactions, so that nobody who ranks
    waits, and lists the bad rows in the result. Where `watch` says stop, "stop" imports nothing, "skip" keeps what is
    written.
    """
    if on_error not in ON_ERROR:
        raise InputError(f"unknown on_error {on_error!r}; use one of {', '.join(ON_ERROR)}")
    found = detect(path, mapping)
    run = _Import(store, found, user, source, project_id, watch or (lambda progress: True))
    return run.all_or_nothing() if on_error == "stop" else run.skipping()


class _Stopped(Exception):
    """Somebody asked the import to stop."""


@dataclass
class _Import:
    store: Store
    found: Source
    user: User
    source: str
    project_id: int
    watch: Watch

    def all_or_nothing(self) -> Imported:
        try:
            rows = sum(len(batch) for batch in self._batches(Imported(), "checking", _raise, self.found.about()))
            if not rows:
                raise InputError(f"{self.found.path}: holds no rows")
            result = Imported()
            with self.store.write() as db:
                writer = Writer(db, self.user, self.source, self.project_id)
                for batch in self._batches(result, "writing", _raise, rows):
                    with indexed_together(db):
                        for place, item in batch:
                            self._write(writer, place, item, result)
        except _Stopped:
            return Imported(stopped=True)
        return result

    def skipping(self) -> Imported:
        result, turn = Imported(), 0.0
        try:
            for batch in self._batches(result, "writing", result.left_out, self.found.about()):
                time.sleep(max(0.0, turn - time.monotonic()))  # reading the batch has left the database to them too
                started = time.monotonic()
                result = self._write_batch(batch, result)
                turn = (ended := time.monotonic()) + BREATH * (ended - started)
        except _Stopped:
            result.stopped = True
        return result

    def _write_batch(self, batch: list[tuple[str, Item]], result: Imported) -> Imported:
        before = deepcopy(result)
        try:
            with self.store.write() as db, indexed_together(db):
                writer = Writer(db, self.user, self.source, self.project_id)
                for place, item in batch:
                    self._write(writer, place, item, result)
        except InputError:  # once more, each row by itself, to leave out only those that are bad
            vars(result).update(vars(before))
            for place, item in batch:
                try:
                    with self.store.write() as db:
                        self._write(Writer(db, self.user, self.source, self.project_id), place, item, result)
                except InputError as error:
                    result.left_out(error)
        return result

    def _write(self, writer: Writer, place: str, item: Item, result: Imported) -> None:
        try:
            writer.write(item, result)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None

    def _batches(
        self, result: Imported, stage: str, on_bad: Callable[[InputError], None], total: int | None
    ) -> Iterator[list[tuple[str, Item]]]:
        """Items in batches that are written in a fraction of a second. Counts rows in `result`."""
        started, batch, size = time.monotonic(), [], 0
        last_place = ""
        for place, item in self.found.items(on_bad):
            result.rows += place != last_place
            last_place = place
            if item is not None:
                batch.append((place, item))
                size += item.size
            if len(batch) >= BATCH_ROWS or size >= BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
                if not self.watch(Progress(stage, result.rows, total, time.monotonic() - started)):
                    raise _Stopped
        if batch:
            yield batch
        self.watch(Progress(stage, result.rows, total, time.monotonic() - started))


def _raise(error: InputError) -> None:
    raise error
