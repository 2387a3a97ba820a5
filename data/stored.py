"""Lists too long for memory: what they hold lies in a temporary file."""

from __future__ import annotations

import os
import pickle
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

from data.records import InputError

T = TypeVar("T")


class Stored(Sequence[T]):
    """A list whose items lie pickled in a temporary file of its own, which goes when the list goes.

    In memory an item takes 16 bytes. Each reading makes a new object, so changing one changes nothing in the list.
    Raises InputError where the disk has no room.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._file = tempfile.TemporaryFile(prefix="preference-loop-")  # noqa: SIM115
        self._starts, self._sizes = array("q"), array("q")
        try:
            for item in items:
                data = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
                self._starts.append(self._file.tell())
                self._sizes.append(self._file.write(data))
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"{tempfile.gettempdir()}: the prepared data cannot be written there ({error.strerror}); make room, "
                "or set TMPDIR to another folder"
            ) from None

    def pick(self, numbers: Sequence[int]) -> Stored[T]:
        """The items of these numbers, in this order; they share this list's file."""
        picked: Stored[T] = Stored.__new__(Stored)
        picked._file = self._file
        picked._starts = array("q", (self._starts[i] for i in numbers))
        picked._sizes = array("q", (self._sizes[i] for i in numbers))
        return picked

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return self.pick(range(*index.indices(len(self))))
        found: T = pickle.loads(os.pread(self._file.fileno(), self._sizes[index], self._starts[index]))
        return found

    def __iter__(self) -> Iterator[T]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: Any) -> bool:
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))
