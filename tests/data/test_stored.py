"""A list in a file is the list it was made of, and takes no memory."""

import pickle
import tempfile
import tracemalloc

import pytest

from data.formats import parse_ranking
from data.records import InputError
from data.stored import Stored


def test_it_reads_like_the_list_it_was_made_of():
    items = [{"number": i, "text": "é" * i} for i in range(7)]
    found = Stored(iter(items))
    assert found == items
    assert found != items[:-1]
    assert found != items[1:] + items[:1]
    assert [found[0], found[-1], len(found)] == [items[0], items[-1], 7]
    assert found[1::3] == items[1::3]
    assert found.pick([5, 0, 5]) == [items[5], items[0], items[5]]
    assert found.pick([5, 0, 3])[:0:-1] == [items[3], items[0]]
    assert list(reversed(found)) == items[::-1]
    with pytest.raises(IndexError):
        found[7]
    assert not Stored([])


def test_records_keep_the_place_they_were_read_at():
    ranking = parse_ranking({"prompt": "x", "chosen": "a", "rejected": "b", "margin": 2})
    object.__setattr__(ranking, "place", "file:3")
    (found,) = Stored([ranking])
    assert (found, found.place) == (ranking, "file:3")


def test_it_takes_no_memory_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tracemalloc.start()
    found = Stored(bytes([i % 256]) * 10_000 for i in range(2000))
    assert sum(item[0] for item in found) == sum(i % 256 for i in range(2000))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 500_000, "of 20 million bytes"
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line(monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
    with (
        open("/dev/full", "wb", buffering=0) as full,
        pytest.raises(InputError, match=r"cannot be written there \(No space left on device\); make room"),
    ):
        Stored(range(3))


def test_a_mistake_while_the_items_are_made_is_passed_on():
    def items():
        yield 1
        raise InputError("file:2: wrong")

    with pytest.raises(InputError, match=r"^file:2: wrong$"):
        Stored(items())
    with pytest.raises((pickle.PicklingError, AttributeError)):
        Stored([lambda: 0])
