"""Everything that was said, in the forms that others read, and back."""

from __future__ import annotations

import csv
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from data.formats import parse_ranking, read_rows
from data.preferences import file_sha256
from data.records import InputError
from labeler import exports, snapshots
from labeler.__main__ import main
from labeler.imports import import_file
from labeler.snapshots import write_snapshot
from labeler.store import rows
from labeler.users import local_owner
from labeler.workspace import Workspace, open_workspace
from tests.labeler.labels import MODEL, make_workspace, rank

CHAT = [
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "And now?"},
]
FORMULA = '=HYPERLINK("http://x")'
GIVEN: list[dict[str, Any]] = [
    {"prompt": "One?", "completions": ["a", "b", "c"], "ranks": [2, 1, None], "annotator": "ann", "weight": 2.0},
    {"prompt": CHAT, "completions": ["x", "y"], "ranks": [1, 2], "annotator": "bob", "margin": 0.5},
    {"prompt": "-2+3", "completions": [FORMULA, "'=kept", "[1, 2]"], "ranks": [1, 2, 2], "annotator": "@bob"},
    {"prompt": "Cut?", "completions": ["lo", "whole"], "ranks": [2, 1], "finish_reasons": ["length", "stop"]},
    {"prompt": "Equal?", "completions": ["same", "thing"], "ranks": [1, 1], "annotator": "ann"},
]


def said(row: dict[str, Any]) -> str:
    return repr(parse_ranking(row))


@pytest.fixture
def filled(tmp_path: Path) -> Workspace:
    workspace = open_workspace(tmp_path / "w", MODEL, seed_file=None)
    file = tmp_path / "given.jsonl"
    file.write_text("".join(json.dumps(row | {"annotator": row.get("annotator", "owner")}) + "\n" for row in GIVEN))
    import_file(workspace.store, file, local_owner(workspace.store))
    return workspace


def export(workspace: Workspace, path: Path, form: str, **filters: Any) -> list[dict[str, Any]]:
    exports.write_export(workspace.store, path, form, filters, local_owner(workspace.store))
    return [row for _, row in read_rows(path)]


@pytest.mark.parametrize(("form", "name"), [("rankings", "r.jsonl.gz"), ("csv", "r.csv"), ("dataset", "folder")])
def test_rankings_come_back_identical(filled: Workspace, tmp_path: Path, form: str, name: str) -> None:
    export(filled, tmp_path / name, form)
    other = open_workspace(tmp_path / "other", MODEL, seed_file=None)
    assert import_file(other.store, tmp_path / name, local_owner(other.store)).rankings == len(GIVEN)
    back = export(other, tmp_path / "again.jsonl", "rankings")
    assert {said(row) for row in back} == {said(row | {"annotator": row.get("annotator", "owner")}) for row in GIVEN}


def test_the_forms(filled: Workspace, tmp_path: Path) -> None:
    pairs = export(filled, tmp_path / "p.jsonl", "pairs")
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"], row["tie"]) for row in pairs] == [
        ("b", "a", False), ("x", "y", False), (FORMULA, "'=kept", False), (FORMULA, "[1, 2]", False),
        ("'=kept", "[1, 2]", True), ("whole", "lo", False), ("same", "thing", True),
    ]  # fmt: skip
    chats = export(filled, tmp_path / "c.jsonl", "conversational")
    assert chats[1] == {
        "prompt": CHAT,
        "chosen": [{"role": "assistant", "content": "x"}],
        "rejected": [{"role": "assistant", "content": "y"}],
    }
    plain = export(filled, tmp_path / "s.jsonl", "preference")
    assert plain[0] == {"prompt": "One?", "chosen": "b", "rejected": "a"}
    assert (len(chats), len(plain)) == (5, 4)  # no ties; a conversation of several turns is no plain text


def test_kto_flags(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 3)
    rank(workspace, [1, 2, 3, None])
    rank(workspace, [1, 1, 1, 1], all_bad=True)
    rank(workspace, [1, 1, 1, 1])
    found = export(workspace, tmp_path / "k.jsonl", "kto")
    flags = [(row["completion"][0]["content"].split()[1], row["label"]) for row in found]
    assert flags == [("a", True), ("c", False), *((letter, False) for letter in "abcd")]


def test_no_cell_is_a_formula(filled: Workspace, tmp_path: Path) -> None:
    exports.write_export(filled.store, tmp_path / "r.csv", "csv", {}, None)
    with open(tmp_path / "r.csv", encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert "'-2+3" in cells
    assert "'@bob" in cells
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t", "\r")]


def test_a_dataset_folder_loads_and_says_what_it_is(filled: Workspace, tmp_path: Path) -> None:
    from datasets import load_dataset

    made = exports.write_export(filled.store, tmp_path / "folder", "dataset", {}, None)
    lines = exports.write_export(filled.store, tmp_path / "r.jsonl", "rankings", {}, None)
    assert made.sha256 == lines.sha256 == file_sha256(tmp_path / "r.jsonl")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert card.startswith("---\nlicense: # fill in")
    assert made.sha256 in card
    found = load_dataset(str(tmp_path / "folder"), split="train", cache_dir=str(tmp_path / "cache"))
    assert found["ranks"][0] == [2, 1, None]
    with pytest.raises(InputError, match="exists already"):
        exports.write_export(filled.store, tmp_path / "folder", "dataset", {}, None)


def test_the_hash_is_the_one_a_run_records(filled: Workspace, tmp_path: Path) -> None:
    run = write_snapshot(filled.store, tmp_path / "run.jsonl", "preferences", {}, None)
    assert exports.write_export(filled.store, tmp_path / "r.jsonl", "rankings", {}, None).sha256 == run.sha256
    stored = rows(filled.store.db, "SELECT format, kind FROM snapshots ORDER BY id")
    assert [tuple(row.values()) for row in stored] == [("rows", "preferences")] * 2
    exports.write_export(filled.store, tmp_path / "k.jsonl", "kto", {}, None)
    assert rows(filled.store.db, "SELECT format FROM snapshots ORDER BY id DESC LIMIT 1") == [{"format": "kto"}]


def test_filters_and_nothing_left(filled: Workspace, tmp_path: Path) -> None:
    assert len(export(filled, tmp_path / "a.jsonl", "rankings", annotators=["ANN"])) == 2
    assert len(export(filled, tmp_path / "b.jsonl", "rankings", project_ids=[1])) == 5
    for filters in ({"project_ids": [2]}, {"since": 9e12}):
        with pytest.raises(InputError, match="no rankings to learn from"):
            export(filled, tmp_path / "c.jsonl", "rankings", **filters)
    assert not (tmp_path / "c.jsonl").exists()


def test_others_write_while_an_export_is_read(filled: Workspace, tmp_path: Path) -> None:
    with snapshots.reading(filled.store, {}) as (db, chosen):
        made = snapshots.rankings(db, chosen)
        next(made)
        with sqlite3.connect(filled.store.path, timeout=0) as other:
            other.execute("DELETE FROM events WHERE 0")
            other.execute("UPDATE prompts SET category = 'changed'")
        other.close()
        assert sum(1 for _ in made) == 4
        assert {row["category"] for row in snapshots.prompts(db, {})} == {""}  # as it was when the export began


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKSPACE", str(tmp_path / "w"))
    open_workspace(tmp_path / "w", MODEL, seed_file=None)
    table = tmp_path / "t.csv"
    table.write_text("q,better,worse,who\nWhy?,x,y,ann\n,x,y,ann\n")
    mapped = ["--map", "prompt=q", "--map", "chosen=better", "--map", "rejected=worse", "--map", "annotator=who"]
    assert main(["import", str(table), *mapped]) == 1
    assert "t.csv:3" in capsys.readouterr().err
    assert main(["import", str(table), *mapped, "--on-error", "skip", "--project", "First project"]) == 0
    said = capsys.readouterr()
    assert "1 rankings; 1 bad rows left out" in said.out
    assert "t.csv:3" in said.err
    assert main(["export", str(tmp_path / "out.jsonl"), "--format", "preference", "--annotators", "ann"]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"prompt": "Why?", "chosen": "x", "rejected": "y"}
    assert main(["export", str(tmp_path / "none.jsonl"), "--project-ids", "x"]) == 1
    assert "--project-ids takes numbers" in capsys.readouterr().err
    assert main(["erase", "ann", "--files", "keep"]) == 0
    assert main(["clean"]) == 0
