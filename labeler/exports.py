"""Training data in the forms that other tools read: streamed, filtered as snapshots are, named by a hash.

A file's hash is the SHA-256 of its bytes, the one that a training run records. A folder's is that of the same rows as
JSON lines.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from data.formats import guard, write_rows
from data.records import InputError
from labeler import snapshots
from labeler.snapshots import Snapshot, in_force, reading, remember, required
from labeler.store import Row, Store
from labeler.users import User

Filters = Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """One form of export: `kind` as in snapshots.KINDS, and how its rows are made."""

    title: str
    kind: str
    rows: Callable[[Database, Filters], Iterator[Row]]
    suffix: str = ".jsonl"


def _pairs(db: Database, filters: Filters, ties: bool) -> Iterator[tuple[Row, str, str, bool]]:
    """(ranking, better, worse, tie) of all pairs of ranked completions that differ."""
    for row in snapshots.rankings(db, filters):
        ranked = [pair for pair in zip(row["ranks"], row["completions"], strict=True) if pair[0] is not None]
        for (first, one), (second, other) in combinations(ranked, 2):
            if one != other and (ties or first != second):
                better, worse = (one, other) if first <= second else (other, one)
                yield row, better, worse, first == second


def _standard(db: Database, filters: Filters) -> Iterator[Row]:
    for row, better, worse, _ in _pairs(db, filters, ties=False):
        if len(row["prompt"]) == 1:  # a conversation of several turns has no form as plain text
            yield {"prompt": row["prompt"][0]["content"], "chosen": better, "rejected": worse}


def _conversational(db: Database, filters: Filters) -> Iterator[Row]:
    for row, better, worse, _ in _pairs(db, filters, ties=False):
        yield {"prompt": row["prompt"], "chosen": [_answer(better)], "rejected": [_answer(worse)]}


def _with_ties(db: Database, filters: Filters) -> Iterator[Row]:
    for row, better, worse, tie in _pairs(db, filters, ties=True):
        more = {"annotator": row["annotator"], "weight": row["weight"], "event": row["event"]}
        yield {"prompt": row["prompt"], "chosen": [_answer(better)], "rejected": [_answer(worse)], "tie": tie, **more}


def _flags(db: Database, filters: Filters) -> Iterator[Row]:
    """Good: on the best rank of a ranking that has a worse one. Bad: on the worst rank, or all bad."""
    for found in in_force(db, filters):
        ranks = [rank for _, rank in found["kept"] if rank is not None]
        for completion, rank in found["kept"]:
            if found["payload"]["all_bad"]:
                label = False
            elif rank is None or rank not in (min(ranks), max(ranks)) or min(ranks) == max(ranks):
                continue
            else:
                label = rank == min(ranks)
            yield {"prompt": found["messages"], "completion": [_answer(completion["text"])], "label": label}


def _answer(text: str) -> Row:
    return {"role": "assistant", "content": text}


FORMS = {
    "rankings": Form("Rankings of K, as our own runs read them (JSONL)", "preferences", snapshots.rankings),
    "preference": Form("TRL preference, standard: chosen and rejected as text (JSONL)", "preferences", _standard),
    "conversational": Form("TRL preference, conversational: chat messages (JSONL)", "preferences", _conversational),
    "pairs": Form("DPO pairs with ties (JSONL)", "preferences", _with_ties),
    "kto": Form("KTO flags: prompt, completion, good or bad (JSONL)", "preferences", _flags),
    "demonstrations": Form("Demonstrations for SFT (JSONL)", "demonstrations", snapshots.demonstrations),
    "prompts": Form("Prompts (JSONL)", "prompts", snapshots.prompts),
    "csv": Form("Rankings as a table (CSV)", "preferences", snapshots.rankings, ".csv"),
    "dataset": Form("Rankings as a datasets folder with a card", "preferences", snapshots.rankings, ""),
}
"""The forms by their names on the command line."""

CSV_COLUMNS = ("prompt", "completions", "ranks", "annotator", "weight", "margin", "finish_reasons", "source", "event")
SHARD_ROWS = 100_000
BATCH_ROWS = 2_000


def write_export(
    store: Store, path: Path, form: str, filters: Filters | None, created_by: User | int | None
) -> Snapshot:
    """Write the rows that pass the filters in that form, and remember it as a snapshot.

    Raises InputError where there is nothing to write, or `path` is a folder with something in it.
    """
    if form not in FORMS:
        raise InputError(f"unknown form {form!r}; use one of {', '.join(FORMS)}")
    if form == "dataset" and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: exists already; name a new folder")
    chosen_form, digest = FORMS[form], None
    with reading(store, filters) as (db, chosen):
        made = required(chosen_form.rows(db, chosen), chosen_form.kind)
        if form == "csv":
            count = _write_csv(path, made)
        elif form == "dataset":
            count, digest = _write_dataset(path, made, chosen)
        else:
            count = write_rows(path, made)
    kept = "rows" if form in snapshots.KINDS or form == "rankings" else form
    return remember(store, path, chosen_form.kind, kept, chosen, {"rows": count}, created_by, digest)


def _write_csv(path: Path, made: Iterator[Row]) -> int:
    """Cells that a spreadsheet would run as a formula begin with an apostrophe; reading the file takes it away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, count = path.with_name(f".{os.getpid()}.{path.name}"), 0
    try:
        with open(partial, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(CSV_COLUMNS)
            for row in made:
                prompt = row["prompt"]
                plain = (
                    prompt[0]["content"] if len(prompt) == 1 and not prompt[0]["content"].startswith("[") else prompt
                )
                writer.writerow(_cell((row | {"prompt": plain}).get(column)) for column in CSV_COLUMNS)
                count += 1
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return guard(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _write_dataset(folder: Path, made: Iterator[Row], chosen: Filters) -> tuple[int, str]:
    """Parquet files and a card that `datasets.load_dataset` understands; (rows, hash)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema(
        [
            ("prompt", pa.list_(message)),
            ("completions", pa.list_(pa.string())),
            ("ranks", pa.list_(pa.int64())),
            ("annotator", pa.string()),
            ("weight", pa.float64()),
            ("margin", pa.float64()),
            ("finish_reasons", pa.list_(pa.string())),
            ("source", pa.string()),
            ("event", pa.string()),
        ]
    )
    partial = folder.with_name(f".{os.getpid()}.{folder.name}")
    digest, count = hashlib.sha256(), 0
    writer: Any = None
    try:
        (partial / "data").mkdir(parents=True)
        while batch := list(islice(made, BATCH_ROWS)):
            for row in batch:
                digest.update((json.dumps(row, ensure_ascii=False) + "\n").encode())
            if count // SHARD_ROWS != (count - BATCH_ROWS) // SHARD_ROWS:
                if writer is not None:
                    writer.close()
                writer = pq.ParquetWriter(partial / "data" / f"train-{count // SHARD_ROWS:05}.parquet", schema)
            writer.write_table(pa.Table.from_pylist(batch, schema))
            count += len(batch)
        writer.close()
        (partial / "README.md").write_text(_card(count, digest.hexdigest(), chosen), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count, digest.hexdigest()


def _card(count: int, digest: str, chosen: Filters) -> str:
    """The README of a dataset folder. The licence is for its owner to fill in."""
    sizes = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
    size = next((name for limit, name in sizes if count < limit), "1M<n<10M")
    return f"""---
license: # fill in under which licence others may use this
task_categories:
- text-generation
tags:
- preference
- human-feedback
size_categories:
- {size}
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---

# Rankings

{count:,} rankings made by people with Preference Loop. One row a ranking: `prompt` (chat messages), `completions`, and
`ranks` aligned with them: 1 is best, equal numbers tie, null was not ranked. `annotator` is who ranked; check that they
agree before you publish names.

- SHA-256 of the rows as JSON lines: `{digest}`
- Last event: {chosen["event_high_water"]}
- Filters: `{json.dumps({key: value for key, value in chosen.items() if key != "event_high_water"})}`
"""
