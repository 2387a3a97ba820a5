"""How cost grows: speed and memory with length and batch size, and preparing more and more preferences.

    python -m benchmarks.growth --data PAIRS [--method dpo] [--only length batch data] [--set KNOB=VALUE ...]

Each point is the real trainer in a process of its own. For lengths and batches the texts are cut from the data's, so
that every answer with its prompt has about the wanted number of tokens, half of them the prompt's. For `data` the rows
are repeated, each with a word of its own so that none is a duplicate, and what is measured is everything before the
first step: reading, checking, encoding; a row of few preferences shows what loading the model takes of it.

Prints a table for each and one JSON line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.peers import measure
from data.formats import ranking_row, read_rankings, write_rows
from data.records import InputError, Message, Prompt
from training.config import DEFAULT_MODEL

Row = dict[str, Any]
LENGTHS, BATCHES, COUNTS = (128, 256, 512, 1024, 2048), (1, 4, 8, 32), (100, 1_000, 10_000, 100_000)
AT_LENGTH, AT_BATCH = 256, 4
STEPS, WARM = 4, 1
TEMPLATE_TOKENS = 64
"""More than a chat template adds, so that nothing is too long."""


def main() -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--data", required=True, help="Pairs to cut texts from")
    parser.add_argument("--method", choices=["reward", "dpo"], default="dpo")
    parser.add_argument("--only", nargs="+", choices=["length", "batch", "data"], default=["length", "batch", "data"])
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="Tokens of prompt and answer")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES, help="Pairs a step")
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS, help="Preferences that are prepared")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"Steps, {WARM} of them warm (default {STEPS})")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KNOB=VALUE", help="Knobs of the trainer"
    )
    parser.add_argument("--prepare", type=int, help=argparse.SUPPRESS)  # this process is one point
    options = parser.parse_args()
    try:
        if options.prepare:
            print(json.dumps(prepare(options)))
            return 0
        found = {}
        for name in options.only:
            found[name] = list(points(name, options))
            print(table(found[name]), end="\n\n", flush=True)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"method": options.method, "set": options.set, **found}))
    return 0


def points(name: str, options: argparse.Namespace) -> Iterator[Row]:
    """The rows of one table, each measured when it is asked for."""
    knobs = ["--set", *options.set] if options.set else []
    for value in {"length": options.lengths, "batch": options.batches, "data": options.counts}[name]:
        print(f"{name} {value}", file=sys.stderr, flush=True)
        if name == "data":
            words = ["--data", options.data, "--model", options.model, "--method", options.method]
            yield measure("benchmarks.growth", [*words, "--prepare", value, *knobs])
            continue
        length, batch = (value, AT_BATCH) if name == "length" else (AT_LENGTH, value)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pairs.jsonl"
            write_rows(file, islice(pairs_of_length(options.data, options.model, length), options.steps * batch))
            found = measure(
                "benchmarks.train",
                [
                    options.method, "--data", file, "--model", options.model, "--steps", options.steps, "--warm", WARM,
                    "--batch", batch, "--max-length", length + TEMPLATE_TOKENS, *knobs,
                ],
            )  # fmt: skip
        shown = ("pairs_per_s", "tokens_per_s", "padding", "matmul_share", "compile_s", "peak_rss_mb")
        yield {"length": length, "batch": batch, **{key: found[key] for key in shown}}


def pairs_of_length(data: str, model: str, length: int) -> Iterator[Row]:
    """Endless pairs whose prompt and answers have length / 2 tokens each, cut from the texts of the data in turn."""
    from transformers import AutoTokenizer

    from training.default_model import default_model_folder

    tokenizer = AutoTokenizer.from_pretrained(default_model_folder() if model == DEFAULT_MODEL else model)
    texts = cycle(text for r in read_rankings(data) for text in (r.prompt.messages[-1]["content"], *r.completions))

    def cut(count: int) -> str:
        ids: list[int] = []
        while len(ids) < count:
            ids += tokenizer.encode(next(texts) + "\n", add_special_tokens=False)
        return str(tokenizer.decode(ids[:count]))

    while True:
        prompt, chosen, rejected = (cut(length // 2) for _ in range(3))
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def prepare(options: argparse.Namespace) -> Row:
    """What it takes from the call of `train` to where its first step would begin, with so many preferences."""
    from benchmarks.train import SEED, setting
    from benchmarks.work import memory
    from training.config import METHODS
    from training.knobs import from_dict
    from training.run import Run

    def begin(*_: Any) -> None:
        raise Prepared

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        write_rows(file, islice(distinct_rows(options.data), options.prepare))
        values = {
            "base_model": options.model, "data": str(file), "output": f"{folder}/run", "validation_fraction": 0.0,
            "max_length": 512, "seed": SEED,
        }  # fmt: skip
        config = from_dict(METHODS[options.method], values | dict(map(setting, options.set)))
        start = time.perf_counter()
        with patch.object(Run, "begin", begin), suppress(Prepared):
            importlib.import_module(f"training.{options.method}").train(config)
        seconds, megabytes = time.perf_counter() - start, file.stat().st_size / 2**20
    return {"preferences": options.prepare, "file_mb": round(megabytes, 1), "seconds": round(seconds, 1), **memory()}


class Prepared(Exception):
    """The first step would begin."""


def distinct_rows(data: str) -> Iterator[Row]:
    """The rows of the data again and again, every prompt with a number of its own."""
    number = 0
    while True:
        for ranking in read_rankings(data):
            number += 1
            *before, last = ranking.prompt.messages
            last = Message(role=last["role"], content=f"{last['content']} ({number})")
            yield ranking_row(replace(ranking, prompt=Prompt((*before, last))))


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [list(map(str, rows[0])), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
