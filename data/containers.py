"""Rows out of what holds more than lines: JSON lists, folders of a saved dataset, zipped ones.

What comes in may be hostile: no name in it leads outside of its folder, and nothing unpacks without bound.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from data import formats
from data.formats import FREE, MAX_LINE, MAX_RATIO, OnBad, parse_json
from data.records import InputError, Row

CHUNK = 2**20
UNPACKED = (".arrow", ".parquet", ".json", ".jsonl", ".ndjson", ".csv")
"""What is taken out of a zip file."""


def read_json(path: Path, bad: OnBad) -> Iterator[tuple[str, Row]]:
    """A list of objects, read piece by piece; a list of chats; one chat; or JSON lines under another name."""
    with open(path, encoding="utf-8-sig", errors="strict") as file:
        try:
            start = file.read(CHUNK).lstrip()[:CHUNK]
        except UnicodeDecodeError:
            raise InputError(f"{path}: is not UTF-8 text; save the file as UTF-8") from None
    if not start.startswith("["):
        yield from _objects(path, start, bad)
        return
    turns: list[Any] = []
    for place, item in _items(path):
        if isinstance(item, dict) and _is_turn(item):
            turns.append(item)
        elif isinstance(item, dict):
            yield place, item
        elif isinstance(item, list):
            yield place, {"messages": item}
        else:
            bad(InputError(f"{place}: an item must be an object or a list of messages"))
    if turns:
        yield f"{path}:row 1", {"messages": turns}


def _is_turn(item: dict[str, Any]) -> bool:
    return {"role", "content"} <= set(item) or {"from", "value"} <= set(item)


def _objects(path: Path, start: str, bad: OnBad) -> Iterator[tuple[str, Row]]:
    """JSON lines, or a single object."""
    try:
        lines = isinstance(parse_json(start.partition("\n")[0]), dict) and bool(start.partition("\n")[2].strip())
    except InputError:
        lines = False
    if lines:
        yield from formats._read_json_lines(path, bad)
        return
    if path.stat().st_size > MAX_LINE:
        raise InputError(f"{path}: is one object of over {MAX_LINE:,} bytes; write a list of rows, or one row a line")
    whole = parse_json(path.read_text(encoding="utf-8-sig"))
    if not isinstance(whole, dict):
        raise InputError(f"{path}: holds neither rows nor a chat; write a list of objects")
    yield f"{path}:row 1", whole


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """The items of a JSON list, without reading all of it."""
    decoder = json.JSONDecoder(object_pairs_hook=formats._fields)
    number, at, text = 0, 0, ""
    with open(path, encoding="utf-8-sig") as file:
        text = file.read(CHUNK).lstrip()[1:]
        while True:
            while at < len(text) and text[at] in " \t\r\n,":
                at += 1
            if text[at : at + 1] == "]":
                return
            place = f"{path}:row {number + 1}"
            try:
                if at == len(text):
                    raise json.JSONDecodeError("the list does not end", text, at)
                item, end = decoder.raw_decode(text, at)
            except RecursionError:
                raise InputError(f"{place}: not usable JSON (nested too deeply)") from None
            except json.JSONDecodeError as error:
                more = file.read(CHUNK)
                if not more or len(text) - at > MAX_LINE:
                    raise InputError(f"{place}: not JSON ({error.msg}); write the file again") from None
                text, at = text[at:] + more, 0
                continue
            except ValueError as error:
                raise InputError(f"{place}: {error}") from None
            number, at = number + 1, end
            yield place, item


def read_folder(folder: Path) -> Iterator[tuple[str, Row]]:
    """What `datasets` saved (one split or several), or any folder with Parquet files in it."""
    if (folder / "dataset_dict.json").is_file():
        splits = _names(folder / "dataset_dict.json", "splits")
        for split in splits:
            yield from read_folder(_inside(folder, split))
        return
    if (folder / "state.json").is_file():
        files = [_inside(folder, name) for name in _names(folder / "state.json", "_data_files")]
    else:
        files = [_inside(folder, str(p.relative_to(folder))) for p in sorted(folder.rglob("*.parquet"))]
    if not files:
        raise InputError(f"{folder}: is a folder, and not of a saved dataset; name a .jsonl, .parquet or .csv file")
    for file in files:
        yield from formats._read_parquet(file) if file.suffix == ".parquet" else _read_arrow(file)


def _names(file: Path, key: str) -> list[str]:
    """The file names that a dataset's own description lists."""
    try:
        found = parse_json(file.read_text(encoding="utf-8"))[key]
        return [item["filename"] if isinstance(item, dict) else str(item) for item in found]
    except (InputError, KeyError, TypeError, UnicodeDecodeError):
        raise InputError(f"{file}: does not say which files belong to the dataset; save the dataset again") from None


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputError(f"{folder}: {name!r} leads outside of the folder; save the dataset again")
    if not path.exists():
        raise InputError(f"{folder}: {name!r} is missing; save the dataset again")
    return path


def _read_arrow(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa

    number = 0
    try:
        with pa.memory_map(str(path)) as source:
            for batch in pa.ipc.open_stream(source):
                for at in range(0, batch.num_rows, 256):
                    for row in batch.slice(at, 256).to_pylist():
                        number += 1
                        yield f"{path}:row {number}", {key: value for key, value in row.items() if value is not None}
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable Arrow file after row {number} ({reason}); save it again") from None


def read_zip(path: Path, bad: OnBad) -> Iterator[tuple[str, Row]]:
    """A zipped dataset folder, or a single zipped file."""
    with TemporaryDirectory() as folder:
        files = _unpack(path, Path(folder))
        if len(files) == 1:
            found = formats.read_rows(files[0], bad)
        else:
            roots = {file.parent for file in files if file.name in ("dataset_dict.json", "state.json")}
            found = read_folder(min(roots, key=lambda root: len(root.parts), default=Path(folder)))
        try:
            for place, row in found:
                yield place.replace(folder, str(path)), row
        except InputError as error:
            raise InputError(str(error).replace(folder, str(path))) from None


def _unpack(path: Path, folder: Path) -> list[Path]:
    most = max(FREE, MAX_RATIO * path.stat().st_size)
    files = []
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = PurePosixPath(member.filename)
                if member.is_dir() or name.suffix.lower() not in UNPACKED:
                    continue
                if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
                    raise InputError(f"{path}: {member.filename!r} leads outside of the folder; zip it again")
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(target, "wb") as copy:
                    while piece := source.read(CHUNK):
                        most -= len(piece)  # counted as it comes: what the archive says of itself is not to be trusted
                        if most < 0:
                            raise InputError(f"{path}: unpacks to over {MAX_RATIO} times its size; import it unpacked")
                        copy.write(piece)
                files.append(target)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path}: not a readable zip file ({error}); zip it again") from None
    if not files:
        raise InputError(f"{path}: holds no data file ({', '.join(UNPACKED)})")
    return files
