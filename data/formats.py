"""Rows in and out: JSON lines (plain or gzipped), Parquet and CSV, with errors that name the file and the row."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from data.records import Demonstration, InputError, Message, Prompt, Ranking, Row, shown
from data.stored import Stored

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:\w+)?(?<!\.jsonl)(?<!\.gz)(?<!\.parquet)(?<!\.csv)")
"""owner/name, as the hub spells it; a name that ends like a data file is meant as a file."""
LIST_COLUMNS = ("completions", "ranks", "messages", "finish_reasons", "completion_info")
TEXT_COLUMNS = ("prompt", "chosen", "rejected", "completion")


MAX_LINE = 2**26
"""Bytes of a line, a cell or a JSON object (64 MiB): more is no row of text."""
MAX_RATIO = 200
"""A compressed file that grows by more than this (and past FREE bytes) is a trap; text shrinks 3 to 20 times."""
FREE = 2**28

Record = TypeVar("Record", Prompt, Ranking, Demonstration)
OnBad = Callable[[InputError], None]
"""Is told of a row that cannot be read; reading goes on behind it."""


def read_rows(path: Path | str, on_bad: OnBad | None = None) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) for every row of a data file; `place` reads "file:line" and goes into error messages.

    Raises InputError where the file is missing, truncated, wrongly encoded or of an unknown kind, and at the first bad
    row unless there is `on_bad` to tell.
    """
    from data import containers

    path, bad = Path(path), on_bad or _stop
    try:
        if HUB_NAME.fullmatch(str(path)) and not path.exists():
            yield from _read_hub(str(path))
            return
        if not path.exists():
            raise InputError(f"{path}: no such file")
        name = path.name.lower()
        if path.is_dir():
            yield from containers.read_folder(path)
        elif name.endswith((".jsonl", ".ndjson", ".jsonl.gz", ".json.gz", ".ndjson.gz")):
            yield from _read_json_lines(path, bad)
        elif name.endswith(".json"):
            yield from containers.read_json(path, bad)
        elif name.endswith(".parquet"):
            yield from _read_parquet(path)
        elif name.endswith((".csv", ".csv.gz")):
            yield from _read_csv(path, bad)
        elif name.endswith(".zip"):
            yield from containers.read_zip(path, bad)
        else:
            raise InputError(f"{path}: unknown kind of file; use .jsonl, .jsonl.gz, .json, .parquet or .csv")
    except PermissionError:
        raise InputError(f"{path}: may not be read by this user; change its permissions") from None
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read to its end ({error}); copy or compress it again") from None


def _stop(error: InputError) -> None:
    raise error


def _read_hub(name: str) -> Iterator[tuple[str, Row]]:
    """A dataset of the hub: owner/name or owner/name:split (train)."""
    from datasets import load_dataset

    hub_name, _, split = name.partition(":")
    try:
        found = load_dataset(hub_name, split=split or "train")
    except Exception as error:  # whatever a network, a hub or a file can do wrong
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name}: no such file, and not to be loaded as a dataset ({reason})") from None
    for number, row in enumerate(found, 1):
        yield f"{name}:row {number}", {key: value for key, value in row.items() if value is not None}


def _lines(path: Path, bad: OnBad = _stop) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of a text file, gzipped or not; a byte-order mark is dropped."""
    most = max(FREE, MAX_RATIO * path.stat().st_size)
    read = number = 0
    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb") as file:
        while line := file.readline(MAX_LINE):
            number, read = number + 1, read + len(line)
            if len(line) == MAX_LINE:
                raise InputError(f"{path}:{number}: the line is longer than {MAX_LINE:,} bytes; write one row a line")
            if read > most:
                raise InputError(
                    f"{path}: unpacks to over {MAX_RATIO} times its size; unpack it first if that is right"
                )
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                where = f"byte {error.start + 1} of the line"
                bad(InputError(f"{path}:{number}: is not UTF-8 text ({where}); save the file as UTF-8"))


def parse_json(text: str) -> Any:
    """What JSON text says. Raises InputError where it is broken, too deep, or names a field twice."""
    try:
        return json.loads(text, object_pairs_hook=_fields)
    except json.JSONDecodeError as error:
        raise InputError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise InputError("not usable JSON (nested too deeply)") from None
    except ValueError as error:  # InputError, or a number of thousands of digits
        raise error if isinstance(error, InputError) else InputError("not usable JSON (a number is too long)") from None


def _fields(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the field {shown(twice)} stands twice in one object; keep one")
    return row


def _read_json_lines(path: Path, bad: OnBad) -> Iterator[tuple[str, Row]]:
    for number, line in _lines(path, bad):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = parse_json(line)
        except InputError as error:
            hint = "; write one object a line" if str(error).startswith("not JSON") else ""
            bad(InputError(f"{place}: {error}{hint}"))
            continue
        if isinstance(row, dict):
            yield place, row
        else:
            bad(InputError(f"{place}: a row must be a JSON object, not {_kind(row)}; write one object a line"))


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(path)
        groups = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
        if max(groups, default=0) > max(FREE, MAX_RATIO * path.stat().st_size):
            raise InputError(f"{path}: unpacks to over {MAX_RATIO} times its size; write it again without compression")
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:row {number}", {key: value for key, value in row.items() if value is not None}
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable Parquet file after row {number} ({reason}); write it again") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: a text after row {number} is not UTF-8; write the file again") from None


def _read_csv(path: Path, bad: OnBad) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(MAX_LINE)
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            place = f"{path}:{reader.line_num}"  # the line on which the row ends
            if not header:
                header = cells
                if len(set(header)) < len(header):
                    raise InputError(f"{place}: two columns have the same name; rename one")
            elif len(cells) > len(header):
                wide = f"{place}: {len(cells)} cells but {len(header)} columns"
                bad(InputError(f"{wide}; put a text that holds commas in quotes"))
            elif cells:
                filled = {key: cell for key, cell in zip(header, cells, strict=False) if key and cell}
                try:
                    row = {key: _cell(key, cell) for key, cell in filled.items()}
                except InputError as error:
                    bad(InputError(f"{place}: {error}"))
                else:
                    yield place, row
    except csv.Error as error:
        raise InputError(
            f"{path}:{reader.line_num}: broken CSV ({error}); double every quote inside a quoted text"
        ) from None


FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""What a spreadsheet might run. `guard` puts an apostrophe before it (one more where there are some), `_cell` takes one
away again."""


def guard(text: str) -> str:
    """The text as it goes into a CSV cell: no spreadsheet takes it for a formula, and reading it gives it back."""
    return f"'{text}" if FORMULA.match(text) else text


def _cell(column: str, text: str) -> Any:
    """A cell's value: lists travel through CSV as JSON text, and so do chat messages."""
    if text.startswith("'") and FORMULA.match(text):
        text = text[1:]
    if column in ("margin", "weight"):
        try:
            return float(text)
        except ValueError:
            raise InputError(f"{column} {shown(text)} is not a number") from None
    if column in (*LIST_COLUMNS, *TEXT_COLUMNS) and text.lstrip().startswith("["):
        with contextlib.suppress(InputError):  # a text that only begins with a bracket
            value = parse_json(text)
            if column in LIST_COLUMNS or (value and all(isinstance(item, dict) for item in value)):
                return value
    return text


KINDS = {
    type(None): "null", dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number",
    float: "a number",
}  # fmt: skip


def _kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    return KINDS.get(type(value), type(value).__name__)


def parse_prompt(value: Any) -> Prompt:
    """A prompt from a string (one user turn) or a list of chat messages."""
    if isinstance(value, str):
        return Prompt(({"role": "user", "content": _text(value)},))
    return Prompt(_messages(value, "prompt"))


def _messages(value: Any, field: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise InputError(f'"{field}" must be a string or a list of chat messages, not {_kind(value)}')
    messages: list[Message] = []
    for item in value:
        if not isinstance(item, dict) or not isinstance(item.get("role"), str):
            raise InputError(f'each message of "{field}" needs a "role" and a "content"')
        if not isinstance(item.get("content"), str):
            raise InputError(f'the content of a message in "{field}" must be text, not {_kind(item.get("content"))}')
        messages.append({"role": sys.intern(item["role"]), "content": _text(item["content"])})
    return tuple(messages)


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError("the text holds half of a surrogate pair, which is no character; write it again") from None
    return value


def parse_completion(value: Any, field: str = "completion") -> str:
    """A completion from a string or from a list that holds one assistant message."""
    if isinstance(value, str):
        return _text(value)
    messages = _messages(value, field)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise InputError(f'"{field}" must be a string or one assistant message')
    return messages[0]["content"]


def _number(row: Row, field: str, default: float) -> float:
    value = row.get(field, default)
    if value is None:
        return default
    try:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    except OverflowError:
        pass
    raise InputError(f'"{field}" must be a number, not {shown(value)}')


def _annotator(row: Row) -> str:
    """Who ranked: a name, or a number that stands for one."""
    value = row.get("annotator")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f'"annotator" must be a name, not {shown(value)}')
    return _text(str(value))


def _split_implicit_prompt(row: Row) -> Row:
    """Chosen and rejected given as whole conversations: what they share before their last turn is the prompt."""
    if isinstance(row["chosen"], str) or isinstance(row["rejected"], str):
        raise InputError('no "prompt"; give one, or whole conversations as "chosen" and "rejected"')
    chosen, rejected = _messages(row["chosen"], "chosen"), _messages(row["rejected"], "rejected")
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise InputError('no "prompt", and "chosen" and "rejected" do not share the turns before their last one')
    return {**row, "prompt": list(chosen[:-1]), "chosen": [chosen[-1]], "rejected": [rejected[-1]]}


def parse_ranking(row: Row) -> Ranking:
    """A ranking from {"prompt","chosen","rejected"} or {"prompt","completions","ranks"}."""
    margin, weight, annotator = _number(row, "margin", 0.0), _number(row, "weight", 1.0), _annotator(row)
    if "chosen" in row and "rejected" in row:
        if "prompt" not in row:
            row = _split_implicit_prompt(row)
        texts = tuple(parse_completion(row[field], field) for field in ("chosen", "rejected"))
        ended = () if "completions" in row else parse_ended(row)  # with completions, the reasons are about those
        return Ranking(parse_prompt(row["prompt"]), texts, (1, 2), margin, weight, ended, annotator)
    missing = [field for field in ("prompt", "completions", "ranks") if field not in row]
    if missing:
        raise InputError(
            f'no {", ".join(map(json.dumps, missing))}; a preference row holds "prompt", "chosen" and "rejected", '
            'or "prompt", "completions" and "ranks"'
        )
    if not isinstance(row["completions"], list) or not isinstance(row["ranks"], list):
        raise InputError('"completions" and "ranks" must be lists')
    texts = tuple(parse_completion(text, "completions") for text in row["completions"])
    ranks = tuple(int(r) if isinstance(r, float) and r.is_integer() else r for r in row["ranks"])
    return Ranking(parse_prompt(row["prompt"]), texts, ranks, margin, weight, parse_ended(row), annotator)


def parse_ended(row: Row) -> tuple[bool, ...]:
    """Which completions came to their end: from `finish_reasons`, or from what `generate` wrote; () where not said."""
    reasons = row.get("finish_reasons")
    if reasons is None and isinstance(row.get("completion_info"), list):
        reasons = [info.get("finish_reason") if isinstance(info, dict) else None for info in row["completion_info"]]
    if reasons is not None and not isinstance(reasons, list):
        raise InputError('"finish_reasons" must be a list, one "stop" or "length" for each completion')
    return tuple(map(_ended, reasons or []))


def _ended(reason: Any) -> bool:
    if reason not in ("stop", "length", None):
        raise InputError(f'finish reason {shown(reason)} must be "stop", "length" or null')
    return reason != "length"


def parse_demonstration(row: Row) -> Demonstration:
    """A demonstration from {"messages"} or {"prompt","completion"}; of a preference, the best-ranked completion."""
    if "messages" in row:
        return Demonstration(_messages(row["messages"], "messages"))
    if "prompt" in row and "completion" in row:
        prompt = parse_prompt(row["prompt"])
        answer: Message = {"role": "assistant", "content": parse_completion(row["completion"])}
        return Demonstration((*prompt.messages, answer), len(prompt.messages), _ended(row.get("finish_reason")))
    if "chosen" in row or "ranks" in row:
        ranking = parse_ranking(row)
        best = min(range(len(ranking.ranks)), key=lambda i: (ranking.ranks[i] is None, ranking.ranks[i]))
        answer = {"role": "assistant", "content": ranking.completions[best]}
        return Demonstration((*ranking.prompt.messages, answer), len(ranking.prompt.messages), ranking.ended[best])
    raise InputError('a demonstration row holds "messages", or "prompt" and "completion"')


def parse_prompt_row(row: Row) -> Prompt:
    """The prompt of any kind of row."""
    if "prompt" in row:
        return parse_prompt(row["prompt"])
    if "messages" in row:
        messages = _messages(row["messages"], "messages")
        return Prompt(messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages)
    if "chosen" in row and "rejected" in row:
        return parse_prompt(_split_implicit_prompt(row)["prompt"])
    raise InputError('no "prompt" in the row')


def read_rankings(path: Path | str) -> Stored[Ranking]:
    """All preferences of a file. Raises InputError with file and line at the first row that is wrong."""
    return _read(path, parse_ranking)


def read_demonstrations(path: Path | str) -> Stored[Demonstration]:
    """All demonstrations of a file. Raises InputError with file and line at the first row that is wrong."""
    return _read(path, parse_demonstration)


def read_prompts(path: Path | str) -> Stored[Prompt]:
    """All prompts of a file. Raises InputError with file and line at the first row that is wrong."""
    return _read(path, parse_prompt_row)


def _read(path: Path | str, parse: Callable[[Row], Record]) -> Stored[Record]:
    records = Stored(_records(path, parse))
    if not records:
        raise InputError(f"{path}: holds no rows")
    return records


def _records(path: Path | str, parse: Callable[[Row], Record]) -> Iterator[Record]:
    for place, row in read_rows(path):
        try:
            record = parse(row)
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
        object.__setattr__(record, "place", place)  # frozen for everybody else
        yield record


def ranking_row(ranking: Ranking, **more: Any) -> Row:
    """The row that `parse_ranking` reads back to an equal ranking."""
    row: Row = {
        "prompt": list(ranking.prompt.messages),
        "completions": list(ranking.completions),
        "ranks": list(ranking.ranks),
    }
    if ranking.margin:
        row["margin"] = ranking.margin
    if ranking.weight != 1.0:
        row["weight"] = ranking.weight
    if not all(ranking.ended):
        row["finish_reasons"] = ["stop" if ended else "length" for ended in ranking.ended]
    if ranking.annotator:
        row["annotator"] = ranking.annotator
    return row | more


def write_rows(path: Path | str, rows: Iterable[Row]) -> int:
    """Write JSON lines (gzipped where the name ends in .gz) by way of a temporary name; returns the number of rows."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")  # keeps the suffix that chooses compression
    count = 0
    try:
        with (
            gzip.open(partial, "wt", encoding="utf-8")
            if path.name.endswith(".gz")
            else open(partial, "w", encoding="utf-8")
        ) as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count
