"""Broken data files, through the real command: one clear line that names the place, exit status 2, never a traceback.

A file is read to its end before a model is loaded, so most cases cost milliseconds and run inside this process.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from data.formats import read_rankings, write_rows
from data.preferences import file_sha256
from data.records import InputError
from tests.training.conftest import last_json
from training.__main__ import main
from training.run_folder import checkpoints, read_manifest, read_status

PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
RANKED = {"prompt": "Why?", "completions": ["a", "b", "c"], "ranks": [1, 2, 3]}
USER = {"role": "user", "content": "Why?"}
GOOD = json.dumps(PAIR)


def ranked(*ranks: Any) -> dict[str, Any]:
    return RANKED | {"ranks": list(ranks)}


ROWS: dict[str, tuple[Any, str]] = {
    "a field is missing": ({"prompt": "x", "chosen": "a"}, 'no "completions", "ranks"'),
    "a prompt alone": ({"prompt": "x"}, 'no "completions", "ranks"'),
    "no prompt": ({"chosen": "a", "rejected": "b"}, 'no "prompt"'),
    "null prompt": (PAIR | {"prompt": None}, "not null"),
    "prompt a number": (PAIR | {"prompt": 3}, "not a number"),
    "prompt empty": (PAIR | {"prompt": "  "}, "last message is empty"),
    "prompt of no messages": (PAIR | {"prompt": []}, "no messages"),
    "message without role": (PAIR | {"prompt": [{"content": "x"}]}, 'needs a "role"'),
    "message a text": (PAIR | {"prompt": ["x"]}, 'needs a "role"'),
    "unknown role": (PAIR | {"prompt": [USER, {"role": "tool", "content": "x"}, USER]}, 'unknown role "tool"'),
    "very long role": (PAIR | {"prompt": [{"role": "x" * 10**5, "content": "x"}]}, "..."),
    "prompt ends with the assistant": (
        PAIR | {"prompt": [USER, {"role": "assistant", "content": "x"}]},
        "end with a u",
    ),
    "content null": (PAIR | {"prompt": [{"role": "user", "content": None}]}, "must be text, not null"),
    "content a list": (PAIR | {"prompt": [{"role": "user", "content": ["x"]}]}, "must be text, not a list"),
    "half a surrogate pair": (PAIR | {"chosen": "\ud83d"}, "surrogate"),
    "empty completion": (PAIR | {"rejected": ""}, "completion 2 is empty"),
    "blank completion": (RANKED | {"completions": ["a", "\n\t ", "c"]}, "completion 2 is empty"),
    "completion a number": (PAIR | {"chosen": 1}, "not a number"),
    "completion a user's message": (PAIR | {"chosen": [USER]}, "one assistant message"),
    "completions a text": (RANKED | {"completions": "abc"}, "must be lists"),
    "one completion": ({"prompt": "x", "completions": ["a"], "ranks": [1]}, "at least two"),
    "no completions": ({"prompt": "x", "completions": [], "ranks": []}, "at least two"),
    "ranks too few": (ranked(1, 2), "3 completions but 2 ranks"),
    "ranks an object": (RANKED | {"ranks": {"a": 1}}, "must be lists"),
    "rank zero": (ranked(0, 1, 2), "rank 0 is not"),
    "rank negative": (ranked(-1, 1, 2), "rank -1 is not"),
    "rank half": (ranked(1.5, 1, 2), "rank 1.5 is not"),
    "rank true": (ranked(True, 1, 2), "rank true is not"),
    "rank text": (ranked("1", 1, 2), 'rank "1" is not'),
    "rank nested": (ranked({"a": "\n"}, 1, 2), "is not a whole number"),
    "rank NaN": (ranked(float("nan"), 1, 2), "rank NaN is not"),
    "rank huge": (ranked(10**4000, 1, 2), "is not a whole number"),
    "all ranks null": (ranked(None, None, None), "fewer than two"),
    "one rank not null": (ranked(None, 1, None), "fewer than two"),
    "margin NaN": (PAIR | {"margin": float("nan")}, "margin nan"),
    "margin infinite": (PAIR | {"margin": float("inf")}, "margin inf"),
    "margin negative": (PAIR | {"margin": -0.5}, "margin -0.5"),
    "margin text": (PAIR | {"margin": "strong"}, '"margin" must be a number, not "strong"'),
    "margin true": (PAIR | {"margin": True}, '"margin" must be a number, not true'),
    "margin of 400 digits": (PAIR | {"margin": 10**400}, '"margin" must be a number'),
    "margin beyond reason": (PAIR | {"margin": 1e300}, "from 0 to 1,000,000"),
    "weight zero": (PAIR | {"weight": 0}, "weight 0.0 must be above 0"),
    "weight NaN": (PAIR | {"weight": float("nan")}, "weight nan"),
    "weight negative": (PAIR | {"weight": -1}, "weight -1.0"),
    "weight of nothing": (PAIR | {"weight": 1e-300}, "must be above 0"),
    "weight a list": (PAIR | {"weight": [1]}, '"weight" must be a number'),
    "annotator a list": (PAIR | {"annotator": ["ann"]}, '"annotator" must be a name'),
    "annotator a fraction": (PAIR | {"annotator": 0.5}, '"annotator" must be a name'),
    "finish reasons too few": (RANKED | {"finish_reasons": ["stop"]}, "3 completions but 1 finish"),
    "finish reasons a text": (RANKED | {"finish_reasons": "stop"}, '"finish_reasons" must be a list'),
    "finish reason unknown": (RANKED | {"finish_reasons": ["stop", "lenght", "stop"]}, '"lenght" must be "stop"'),
    "conversations that differ": (
        {"chosen": [USER, {"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]},
        "do not share",
    ),
    "a row that is a list": ([PAIR], "must be a JSON object, not a list"),
    "a row that is a number": (7, "must be a JSON object, not a number"),
    "a row that is null": (None, "must be a JSON object, not null"),
}
"""Name: (the second row of a file of JSON lines, words that the error holds)."""

LINES: dict[str, tuple[str, str]] = {
    "not JSON": ("{prompt: 'x'}", "not JSON"),
    "cut in the middle": (GOOD[:-5], "not JSON"),
    "two objects on a line": (GOOD + GOOD, "one object a line"),
    "number beyond range": (GOOD[:-1] + ', "margin": 1e999}', "margin inf"),
    "number of 5,000 digits": (GOOD[:-1] + ', "margin": ' + "9" * 5000 + "}", "number is too long"),
    "nested deeply": ('{"prompt": ' + "[" * 200_000, "nested too deeply"),
    "a field twice": (GOOD[:-1] + ', "chosen": "x"}', '"chosen" stands twice'),
    "NUL bytes of a crash": ("\0" * 512, "not JSON"),
    "a raw control character": (GOOD.replace("Because", "Bec\x01ause"), "not JSON"),
}
"""Name: (the second line of a file of JSON lines, words that the error holds)."""


def csv(text: str) -> bytes:
    return ("prompt,chosen,rejected,margin\nWhy?,Because.,No.,\n" + text).encode()


def parquet(columns: dict[str, list[Any]]) -> bytes:
    return pd.DataFrame(columns).to_parquet()


MANY = "".join(json.dumps(PAIR | {"prompt": str(random.Random(i).random())}) + "\n" for i in range(3000))
TABLE = parquet({"prompt": [str(random.Random(i).random()) for i in range(3000)], "chosen": "a", "rejected": "b"})

FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("x.jsonl", b"", "holds no rows"),
    "blank lines": ("x.jsonl", b"\n  \n\r\n", "holds no rows"),
    "byte-order mark alone": ("x.jsonl", b"\xef\xbb\xbf", "holds no rows"),
    "one array": ("x.jsonl", json.dumps([PAIR, PAIR]).encode(), "x.jsonl:1: a row must be a JSON object"),
    "one array over lines": ("x.jsonl", json.dumps([PAIR], indent=1).encode(), "x.jsonl:1: not JSON"),
    "one object over lines": ("x.jsonl", json.dumps(PAIR, indent=1).encode(), "x.jsonl:1: not JSON"),
    "utf-16": ("x.jsonl", GOOD.encode("utf-16"), "x.jsonl:1: is not UTF-8"),
    "utf-16 without a mark": ("x.jsonl", (GOOD + "\n").encode("utf-16-le"), "x.jsonl:1: not JSON"),
    "latin-1": ("x.jsonl", (GOOD + "\n" + GOOD.replace("Why", "Wh\xff")).encode("latin-1"), "x.jsonl:2: is not UTF-8"),
    "gzip cut short": ("x.jsonl.gz", gzip.compress(MANY.encode())[:-2000], "cannot be read to its end"),
    "gzip of zeros inside": ("x.jsonl.gz", gzip.compress(MANY.encode())[:9000] + bytes(9000), "x.jsonl.gz:"),
    "gzip that is none": ("x.jsonl.gz", GOOD.encode(), "cannot be read to its end"),
    "parquet that is none": ("x.parquet", GOOD.encode(), "not a readable Parquet file"),
    "parquet cut short": ("x.parquet", TABLE[:-100], "not a readable Parquet file"),
    "parquet with a hole": ("x.parquet", TABLE[:500] + bytes(9000) + TABLE[9500:], "not a readable Parquet file"),
    "parquet of numbers": (
        "x.parquet",
        parquet({"prompt": [1], "chosen": [2.5], "rejected": ["b"]}),
        "x.parquet:row 1",
    ),
    "parquet of bytes": ("x.parquet", parquet({"prompt": ["x"], "chosen": [b"a"], "rejected": ["b"]}), "not bytes"),
    "parquet without a column": ("x.parquet", parquet({"prompt": ["x"], "chosen": ["a"]}), "x.parquet:row 1: no"),
    "parquet with a null": (
        "x.parquet",
        parquet({"prompt": ["x", "y"], "chosen": ["a", None], "rejected": ["b", "b"]}),
        "x.parquet:row 2: no",
    ),
    "csv without a column": ("x.csv", b"prompt,chosen\nWhy?,Because.\n", 'x.csv:2: no "completions"'),
    "csv of a header alone": ("x.csv", b"prompt,chosen,rejected\n", "holds no rows"),
    "csv with an open quote": ("x.csv", csv('"Why?,a,b,\nWhy?,a,b,\n'), "broken CSV"),
    "csv with a stray quote": ("x.csv", csv('"Why" not?,a,b,\n'), "x.csv:3: broken CSV"),
    "csv with a bare comma": ("x.csv", csv("Why, then?,a,b,1\n"), "x.csv:3: 5 cells but 4 columns"),
    "csv with a cell less": ("x.csv", csv("Why?,a\n"), "x.csv:3: no"),
    "csv margin text": ("x.csv", csv("Why?,a,b,strong\n"), 'x.csv:3: margin "strong" is not a number'),
    "csv margin NaN": ("x.csv", csv("Why?,a,b,nan\n"), "x.csv:3: margin nan"),
    "csv in latin-1": ("x.csv", csv("") + b"Wh\xff?,a,b,\n", "x.csv:3: is not UTF-8"),
    "csv names a column twice": ("x.csv", b"prompt,chosen,chosen\nx,a,b\n", "x.csv:1: two columns"),
    "unknown suffix": ("x.xlsx", b"PK", "unknown kind of file"),
    "no suffix": ("x", GOOD.encode(), "unknown kind of file"),
    "a list that does not end": ("x.json", b"[" + GOOD.encode(), "x.json:row 2: not JSON (the list does not end)"),
}
"""Name: (file name, bytes, words that the error holds)."""

Refused = Callable[..., str]


@pytest.fixture
def refused(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Refused:
    """Run the command on a data file that it must refuse; returns the one line it says."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a hundred runs need not wait for the disk

    def run(path: Path, method: str = "reward") -> str:
        status = main([method, "--base-model", str(tiny_model), "--data", str(path), "--output", str(tmp_path / "run")])
        said = capsys.readouterr()
        assert status == 2
        assert said.out == ""
        assert "Traceback" not in said.err
        *_, last = said.err.splitlines()
        assert last.startswith("error: "), said.err
        assert len(last) < 500
        assert str(path) in last
        assert not checkpoints(tmp_path / "run")
        status_file = read_status(tmp_path / "run")
        assert status_file is None or (status_file["state"], status_file["message"]) == ("failed", last[7:])
        return last

    return run


@pytest.mark.parametrize("name", ROWS)
def test_broken_row(tmp_path, refused, name):
    row, words = ROWS[name]
    path = tmp_path / "x.jsonl"
    path.write_text(GOOD + "\n" + json.dumps(row) + "\n" + GOOD + "\n")
    said = refused(path)
    assert f"{path}:2: " in said
    assert words in said


@pytest.mark.parametrize("name", LINES)
def test_broken_line(tmp_path, refused, name):
    line, words = LINES[name]
    path = tmp_path / "x.jsonl"
    path.write_text(GOOD + "\n" + line + "\n" + GOOD + "\n")
    said = refused(path)
    assert f"{path}:2: " in said
    assert words in said


@pytest.mark.parametrize("name", FILES)
def test_broken_file(tmp_path, refused, name):
    file, content, words = FILES[name]
    path = tmp_path / file
    path.write_bytes(content)
    assert words in refused(path)


def test_missing_files_and_folders(tmp_path, refused):
    assert "no such file" in refused(tmp_path / "absent.jsonl")
    assert "is a folder" in refused(tmp_path)
    (tmp_path / "rows.jsonl").mkdir()
    assert "is a folder" in refused(tmp_path / "rows.jsonl")


@pytest.fixture
def unreadable() -> Iterator[Path]:
    """A file that this process may not read, whoever runs the tests."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "x.jsonl"
        path.write_text(GOOD + "\n")
        path.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield path
        os.seteuid(user)


def test_unreadable_file(unreadable):
    for read in (read_rankings, file_sha256):
        with pytest.raises(InputError, match=rf"^{re.escape(str(unreadable))}: .*permissions"):
            read(unreadable)


@pytest.mark.parametrize("method", ["sft", "dpo", "ppo"])
def test_every_method_refuses_alike(tmp_path, refused, method):
    path = tmp_path / "x.jsonl"
    path.write_text(GOOD + "\n" + json.dumps(PAIR | {"prompt": None}) + "\n")
    assert f"{path}:2: " in refused(path, method)


@pytest.mark.parametrize("name", ["ranks all null", "gzip cut short", "latin-1"])
def test_the_command_itself_says_one_line(command, tiny_model, tmp_path, name):
    file, content, words = FILES.get(
        name, ("x.jsonl", json.dumps(ranked(None, None, None)).encode(), "x.jsonl:1: fewer")
    )
    (tmp_path / file).write_bytes(content)
    done = command("dpo", "--base-model", tiny_model, "--data", file, "--output", "run", check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert words in done.stderr.splitlines()[-1]


def test_what_is_skipped_is_counted_and_the_rest_is_learned(command, tiny_model, tmp_path):
    """Twice the same row, nothing to prefer, too long a prompt; several annotators are no duplicates of each other."""
    rows = [
        PAIR | {"annotator": "ann"},
        PAIR | {"annotator": "bob"},
        {"prompt": [USER], "completions": ["Because.", "No."], "ranks": [1, 2], "annotator": "ann"},
        PAIR | {"annotator": "bob", "chosen": "No.", "rejected": "Because."},
        PAIR | {"rejected": PAIR["chosen"]},
        PAIR | {"prompt": "long " * 3000},
        PAIR | {"prompt": "A byte-order mark\u0000, a NUL and \u2028 are text."},
    ]
    text = "\n\n".join(map(json.dumps, rows))
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    done = command("reward", "--base-model", tiny_model, "--data", "x.jsonl", "--output", "run", "--max-steps", 1,
                   "--lora-rank", 2, "--validation-fraction", 0, "--dtype", "fp32")  # fmt: skip
    (line,) = [line for line in done.stderr.splitlines() if "rankings" in line]
    assert line.endswith(
        "4 rankings; 1 left out: longer than max_length 1024 tokens even so; 1 skipped: they repeat an earlier row; "
        "1 skipped: their completions are all the same"
    )
    told = read_manifest(tmp_path / last_json(done)["checkpoint"])["data"]
    assert told["groups"] == 4
    assert (told["kept"], told["left_out"], told["duplicates"], told["identical"]) == (4, 1, 1, 1)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([PAIR | {"rejected": PAIR["chosen"]}] * 2, "nothing is left to learn from"),
        (
            [PAIR | {"prompt": "long " * 3000}] * 2,
            "none of the 1 preferences fits into max_length 1024 tokens; raise it",
        ),
        ([{"prompt": "Why?", "completions": ["a", "b"], "ranks": [1, 1]}], "every comparison is a tie"),
    ],
)
def test_nothing_left_to_learn_from(tmp_path, tiny_model, capsys, rows, words):
    write_rows(tmp_path / "x.jsonl", rows)
    arguments = [
        "--base-model",
        str(tiny_model),
        "--data",
        str(tmp_path / "x.jsonl"),
        "--output",
        str(tmp_path / "run"),
    ]
    assert main(["reward", "--ties", "ignore", *arguments]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
