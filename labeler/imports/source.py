"""What a file holds: recognised by its content, shown before it is imported, read row by row."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.formats import OnBad, read_rows
from data.records import InputError, Row
from labeler.imports import columns, foreign
from labeler.imports.items import Item, parse_item

LOOKED_AT = 20
"""Rows from which a file's kind and columns are told."""
ESTIMATED_FROM = 2**24


@dataclass(frozen=True)
class Source:
    """A file and how to read it. `tool` is a key of foreign.CONVERTERS, or "" for rows with columns.

    `names` are the file's columns, `mapping` says which of them is what (see columns.FIELDS).
    """

    path: Path
    tool: str
    names: tuple[str, ...]
    mapping: columns.Columns

    def __str__(self) -> str:
        if self.tool:
            return foreign.CONVERTERS[self.tool][0]
        return f"rows with the columns {', '.join(self.names)}"

    def items(self, on_bad: OnBad) -> Iterator[tuple[str, Item | None]]:
        """(place, item); a foreign record may be several. None where a row is bad, which `on_bad` was told."""
        bad: list[InputError] = []
        for place, raw in read_rows(self.path, bad.append):
            while bad:
                unread = bad.pop(0)
                on_bad(unread)
                yield str(unread), None
            try:
                for row in self._rows(raw):
                    yield place, parse_item(row)
            except InputError as error:
                on_bad(InputError(f"{place}: {error}"))
                yield place, None
        for unread in bad:
            on_bad(unread)
            yield str(unread), None

    def _rows(self, raw: Row) -> Iterator[Row]:
        if self.tool:
            yield from foreign.CONVERTERS[self.tool][1](raw)
        else:
            yield columns.apply(self.mapping, raw)

    def preview(self, count: int = 5) -> list[tuple[str, Item | str]]:
        """The first rows as they would be imported: (place, item), or what is wrong with them."""
        found: list[tuple[str, Item | str]] = []
        try:
            for place, item in itertools.islice(
                self.items(lambda error: found.append((str(self.path), str(error)))), count
            ):
                if item is not None:
                    found.append((place, item))
        except InputError as error:
            found.append((str(self.path), str(error)))
        return found

    def about(self) -> int | None:
        """About how many rows there are, from the lines of a text file's beginning; None where that cannot be told."""
        name = self.path.name.lower()
        if name.endswith(".parquet"):
            import pyarrow.parquet as pq

            return int(pq.ParquetFile(self.path).metadata.num_rows)
        if not name.endswith((".jsonl", ".ndjson", ".gz", ".csv")):
            return None
        with open(self.path, "rb") as raw, gzip.open(raw) if name.endswith(".gz") else raw as file:
            lines = file.read(ESTIMATED_FROM).count(b"\n")
            return round(lines * self.path.stat().st_size / max(1, raw.tell()))


def detect(path: Path, mapping: columns.Columns | None = None) -> Source:
    """Look at the file's beginning. `mapping` replaces what the column names suggest.

    Raises InputError where the file cannot be read, holds no rows, or a column of the mapping is not in it.
    """
    bad: list[InputError] = []
    first = [row for _, row in itertools.islice(read_rows(path, bad.append), LOOKED_AT)]
    if not first:
        raise bad[0] if bad else InputError(f"{path}: holds no rows")
    tool = foreign.recognise(first[0])
    names = tuple(dict.fromkeys(name for row in first for name in row))
    if tool:
        if mapping:
            raise InputError(f"{path}: is {foreign.CONVERTERS[tool][0]}; its columns need no mapping")
        return Source(path, tool, names, {})
    if mapping is not None:
        columns.check(mapping, names)
    return Source(path, tool, names, columns.guess(names) if mapping is None else dict(mapping))
