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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from data.records import Demonstration, InputError, Message, Prompt, Ranking, Row

Record = TypeVar("Record", Prompt, Ranking, Demonstration)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:\w+)?(?<!\.jsonl)(?<!\.gz)(?<!\.parquet)(?<!\.csv)")
"""owner/name, as the hub spells it; a name that ends like a data file is meant as a file."""
JSON_COLUMNS = ("prompt", "chosen", "rejected", "completion", "completions", "ranks", "messages")


def read_rows(path: Path | str) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) for every row of a data file; `place` reads "file:line" and goes into error messages.

    Raises InputError where the file is missing, truncated, wrongly encoded or of an unknown kind.
    """
    path = Path(path)
    if (path / "dataset_info.json").exists() or (HUB_NAME.fullmatch(str(path)) and not path.exists()):
        yield from _read_dataset(str(path))
        return
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path}: is a folder, and not of a saved dataset; name a .jsonl, .parquet or .csv file")
    name = path.name.lower()
    try:
        if name.endswith((".jsonl", ".ndjson", ".jsonl.gz", ".json.gz", ".ndjson.gz")):
            yield from _read_json_lines(path)
        elif name.endswith(".parquet"):
            yield from _read_parquet(path)
        elif name.endswith((".csv", ".csv.gz")):
            yield from _read_csv(path)
        else:
            raise InputError(f"{path}: unknown kind of file; use .jsonl, .jsonl.gz, .parquet or .csv")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (EOFError, OSError, zlib.error, csv.Error) as error:
        raise InputError(f"{path}: cannot be read to its end ({error}); copy or compress it again") from None


def _read_dataset(name: str) -> Iterator[tuple[str, Row]]:
    """A dataset that `datasets` saved into a folder, or one of the hub: owner/name or owner/name:split (train)."""
    from datasets import load_dataset, load_from_disk

    hub_name, _, split = name.partition(":")
    try:
        found = load_from_disk(name) if Path(name).is_dir() else load_dataset(hub_name, split=split or "train")
    except Exception as error:  # whatever a network, a hub or a file can do wrong
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name}: no such file, and not to be loaded as a dataset ({reason})") from None
    for number, row in enumerate(found, 1):
        yield f"{name}:row {number}", {key: value for key, value in row.items() if value is not None}


def _open_text(path: Path) -> TextIO:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def _read_json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    with _open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{place}: not JSON ({error.msg} at column {error.colno}); one object a line"
                ) from None
            if not isinstance(row, dict):
                raise InputError(f"{place}: a row must be a JSON object, not {type(row).__name__}")
            yield place, row


def _read_parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise InputError(f"{path}: not a readable Parquet file ({error})") from None
    number = 0
    for batch in table.iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            yield f"{path}:row {number}", {key: value for key, value in row.items() if value is not None}


def _read_csv(path: Path) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with _open_text(path) as file:
        for number, raw in enumerate(csv.DictReader(file), 2):
            row: Row = {key: value for key, value in raw.items() if key and value not in (None, "")}
            for key in JSON_COLUMNS:  # lists travel through CSV as JSON text
                text = row.get(key)
                if isinstance(text, str) and text.lstrip().startswith("["):
                    with contextlib.suppress(json.JSONDecodeError):  # a text that only begins with a bracket
                        row[key] = json.loads(text)
            for key in ("margin", "weight"):
                if key in row:
                    try:
                        row[key] = float(row[key])
                    except ValueError:
                        raise InputError(f"{path}:{number}: {key} {row[key]!r} is not a number") from None
            yield f"{path}:{number}", row


def parse_prompt(value: Any) -> Prompt:
    """A prompt from a string (one user turn) or a list of chat messages."""
    if isinstance(value, str):
        return Prompt(({"role": "user", "content": _text(value)},))
    return Prompt(_messages(value, "prompt"))


def _messages(value: Any, field: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise InputError(f'"{field}" must be a string or a list of chat messages, not {type(value).__name__}')
    messages: list[Message] = []
    for item in value:
        if not isinstance(item, dict) or not isinstance(item.get("role"), str):
            raise InputError(f'each message of "{field}" needs a "role" and a "content"')
        if not isinstance(item.get("content"), str):
            raise InputError(
                f'the content of a message in "{field}" must be text, not {type(item.get("content")).__name__}'
            )
        messages.append({"role": item["role"], "content": _text(item["content"])})
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
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f'"{field}" must be a number, not {value!r}')
    return float(value)


def _split_implicit_prompt(row: Row) -> Row:
    """Chosen and rejected given as whole conversations: what they share before their last turn is the prompt."""
    chosen, rejected = _messages(row["chosen"], "chosen"), _messages(row["rejected"], "rejected")
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise InputError('no "prompt", and "chosen" and "rejected" do not share the turns before their last one')
    return {**row, "prompt": list(chosen[:-1]), "chosen": [chosen[-1]], "rejected": [rejected[-1]]}


def parse_ranking(row: Row) -> Ranking:
    """A ranking from {"prompt","chosen","rejected"} or {"prompt","completions","ranks"}."""
    margin, weight = _number(row, "margin", 0.0), _number(row, "weight", 1.0)
    if "chosen" in row and "rejected" in row:
        if "prompt" not in row:
            row = _split_implicit_prompt(row)
        texts = tuple(parse_completion(row[field], field) for field in ("chosen", "rejected"))
        return Ranking(parse_prompt(row["prompt"]), texts, (1, 2), margin, weight)
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
    return Ranking(parse_prompt(row["prompt"]), texts, ranks, margin, weight, parse_ended(row))


def parse_ended(row: Row) -> tuple[bool, ...]:
    """Which completions came to their end: from `finish_reasons`, or from what `generate` wrote; () where not said."""
    reasons = row.get("finish_reasons")
    if reasons is None and isinstance(row.get("completion_info"), list):
        reasons = [info.get("finish_reason") if isinstance(info, dict) else None for info in row["completion_info"]]
    if reasons is not None and not isinstance(reasons, list):
        raise InputError('"finish_reasons" must be a list, one "stop" or "length" for each completion')
    return tuple(reason != "length" for reason in reasons or [])


def parse_demonstration(row: Row) -> Demonstration:
    """A demonstration from {"messages"} or {"prompt","completion"}; of a preference, the best-ranked completion."""
    if "messages" in row:
        return Demonstration(_messages(row["messages"], "messages"))
    if "prompt" in row and "completion" in row:
        prompt = parse_prompt(row["prompt"])
        answer: Message = {"role": "assistant", "content": parse_completion(row["completion"])}
        return Demonstration((*prompt.messages, answer), len(prompt.messages), row.get("finish_reason") != "length")
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


def read_rankings(path: Path | str) -> list[Ranking]:
    """All preferences of a file. Raises InputError with file and line at the first row that is wrong."""
    return _read(path, parse_ranking)


def read_demonstrations(path: Path | str) -> list[Demonstration]:
    """All demonstrations of a file. Raises InputError with file and line at the first row that is wrong."""
    return _read(path, parse_demonstration)


def read_prompts(path: Path | str) -> list[Prompt]:
    """All prompts of a file. Raises InputError with file and line at the first row that is wrong."""
    return _read(path, parse_prompt_row)


def _read(path: Path | str, parse: Any) -> list[Any]:
    records = []
    for place, row in read_rows(path):
        try:
            records.append(parse(row))
        except InputError as error:
            raise InputError(f"{place}: {error}") from None
    if not records:
        raise InputError(f"{path}: holds no rows")
    return records


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
