"""Files of every kind in: recognised, mapped, checked, bad rows named, nothing twice, nobody kept waiting."""

from __future__ import annotations

import gzip
import json
import sqlite3
import zipfile
from pathlib import Path
from typing import Any

import pytest

from data.records import InputError
from labeler.imports import Imported, Progress, foreign, import_file
from labeler.imports import columns as column_names
from labeler.imports.background import Importer
from labeler.imports.items import Item
from labeler.imports.source import detect
from labeler.imports.writer import Writer
from labeler.projects import create_project
from labeler.rankings import record_ranking
from labeler.store import rows, scalar
from labeler.tasks import next_assignment
from labeler.users import ensure_user, local_owner
from labeler.workspace import Workspace, open_workspace
from tests.labeler.labels import MODEL
from tests.labeler.studio import wait_for

GOOD = {"prompt": "Why?", "completions": ["because", "no"], "ranks": [1, 2], "annotator": "ann"}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return open_workspace(tmp_path / "w", MODEL, seed_file=None)


def put(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def bring(workspace: Workspace, path: Path, **more: Any) -> Imported:
    return import_file(workspace.store, path, local_owner(workspace.store), **more)


def said(workspace: Workspace) -> list[tuple[str, list[str], list[int | None], str]]:
    """(prompt, completions, ranks, annotator) of every ranking in force."""
    found = rows(
        workspace.store.db,
        """SELECT p.messages, r.completion_ids, r.ranks, u.name FROM latest_rankings AS r
            JOIN prompts AS p ON p.id = r.prompt_id JOIN users AS u ON u.id = r.user_id ORDER BY r.event_id""",
    )
    texts = {row["id"]: row["text"] for row in rows(workspace.store.db, "SELECT id, text FROM completions")}
    return [
        (
            json.loads(row["messages"])[-1]["content"],
            [texts[i] for i in json.loads(row["completion_ids"])],
            json.loads(row["ranks"]),
            row["name"],
        )
        for row in found
    ]


# ---------------------------------------------------------------- bad rows


def test_bad_rows_are_named_and_left_out(workspace: Workspace, tmp_path: Path) -> None:
    taken = {"prompt": "Other?", "id": "one"}
    file = put(
        tmp_path / "f.jsonl", {**GOOD, "id": "one"}, "{broken", {"prompt": ""}, taken, {**GOOD, "ranks": [1, 99]}, "[]",
        {**GOOD, "prompt": "Last?"},
    )  # fmt: skip
    result = bring(workspace, file, on_error="skip")
    assert (result.rankings, result.prompts, result.bad) == (2, 2, 5)
    for number, words in ((2, "not JSON"), (3, "empty"), (4, "taken by another"), (5, "rank 99"), (6, "JSON object")):
        assert any(f"f.jsonl:{number}: " in error and words in error for error in result.errors), (
            number,
            result.errors,
        )
    assert [ranking[0] for ranking in said(workspace)] == ["Why?", "Last?"]
    assert bring(workspace, file, on_error="skip").rankings == 0


def test_the_first_hundred_bad_rows_are_kept(workspace: Workspace, tmp_path: Path) -> None:
    result = bring(workspace, put(tmp_path / "f.jsonl", *["nonsense"] * 130, GOOD), on_error="skip")
    assert (result.bad, len(result.errors), result.rankings, result.rows) == (130, 100, 1, 131)


def test_all_or_nothing_names_the_row_that_only_the_store_refuses(workspace: Workspace, tmp_path: Path) -> None:
    file = put(tmp_path / "f.jsonl", {**GOOD, "id": "one"}, {"prompt": "Other?", "id": "one"})
    with pytest.raises(InputError, match=r"f\.jsonl:2: the prompt id 'one' is taken"):
        bring(workspace, file)
    assert scalar(workspace.store.db, "SELECT count(*) FROM prompts") == 0


# ---------------------------------------------------------------- projects, copies, payloads


def test_tasks_go_to_the_project_and_the_same_file_may_go_to_two(workspace: Workspace, tmp_path: Path) -> None:
    owner = local_owner(workspace.store)
    second = create_project(workspace.store, owner, "Second", overlap=3)
    file = put(tmp_path / "f.jsonl", GOOD, {"prompt": "Open?", "completions": ["a", "b"]})
    assert bring(workspace, file).rankings == 1
    result = bring(workspace, file, project_id=second.id)
    assert (result.prompts, result.tasks, result.rankings) == (0, 2, 1)
    assert bring(workspace, file, project_id=second.id) == Imported(rows=2)
    found = rows(workspace.store.db, "SELECT project_id, overlap, submissions FROM tasks ORDER BY id")
    assert [tuple(row.values()) for row in found] == [(1, 1, 1), (1, 1, 0), (2, 3, 1), (2, 3, 0)]
    task = next_assignment(workspace.store, owner, second.id)
    assert task is not None
    assert {c.text for c in task.completions} == {"because", "no"}  # two more people may rank it
    with pytest.raises(InputError, match="no project 9"):
        bring(workspace, file, project_id=9)


def test_what_is_written_fast_is_what_the_rank_tab_writes(workspace: Workspace) -> None:
    owner = local_owner(workspace.store)
    messages = '[{"role": "user", "content": "Same?"}]'
    item = Item(messages, "0" * 64, "", None, "ann", ("x", "y"), (2, 1), 2.0, 0.5, "hm", ({}, {}))
    with workspace.store.write() as db:
        writer = Writer(db, owner, "import", 1)
        writer.write(item, Imported())
        _, completions = writer._add_task(1, item)
        task = scalar(db, "SELECT max(id) FROM tasks")
        db.execute("UPDATE tasks SET submissions = 0 WHERE id = ?", [task])
        record_ranking(
            db, ensure_user(db, "ann"), task, (2, 1), comment="hm", source="import", event_id="x" * 10,
            more={"weight": 2.0, "margin": 0.5},
        )  # fmt: skip
    for table in ("events", "assignments"):
        fast, slow = rows(workspace.store.db, f"SELECT * FROM {table} ORDER BY id")
        assert list(fast) == list(slow)
        for key in ("kind", "source", "user_id", "state", "client_time", "purpose"):
            assert fast.get(key) == slow.get(key)
        if table == "events":
            one, other = json.loads(fast["payload"]), json.loads(slow["payload"])
            assert list(one) == list(other)
            same = ("weight", "margin", "ranks", "all_bad", "comment", "seconds")
            assert [one[key] for key in same] == [other[key] for key in same]
            assert other["completion_ids"] == completions
            assert sorted(one["display_order"]) == one["completion_ids"]
    submissions = rows(workspace.store.db, "SELECT submissions FROM tasks")
    assert [row["submissions"] for row in submissions] == [1, 1]


def test_many_tasks_of_one_prompt_are_told_apart(workspace: Workspace, tmp_path: Path) -> None:
    given = [{"prompt": "One?", "completions": ["the same beginning of a long answer " + c, "b"]} for c in "abc"]
    given.append({"prompt": "One?", "completions": ["b", "the same beginning of a long answer a"]})
    file = put(tmp_path / "f.jsonl", *given, given[0])
    assert bring(workspace, file) == Imported(rows=5, prompts=1, tasks=4)
    assert bring(workspace, file) == Imported(rows=5)


# ---------------------------------------------------------------- progress and stopping


@pytest.mark.parametrize(("on_error", "kept"), [("stop", 0), ("skip", 1000)])
def test_an_import_can_be_stopped(workspace: Workspace, tmp_path: Path, on_error: str, kept: int) -> None:
    file = put(tmp_path / "f.jsonl", *({"prompt": f"Question {n}?"} for n in range(3000)))
    seen: list[Progress] = []

    def watch(progress: Progress) -> bool:
        seen.append(progress)
        return progress.stage == "checking"

    result = bring(workspace, file, on_error=on_error, watch=watch)
    assert result.stopped
    assert scalar(workspace.store.db, "SELECT count(*) FROM prompts") == kept
    assert seen[0].rows == 1000
    assert seen[0].total is not None
    assert abs(seen[0].total - 3000) < 100


def test_while_rows_are_left_out_others_can_write_between_batches(workspace: Workspace, tmp_path: Path) -> None:
    file = put(tmp_path / "f.jsonl", *({"prompt": f"Question {n}?"} for n in range(2500)))
    written: list[int] = []

    def somebody_else(progress: Progress) -> bool:
        with sqlite3.connect(workspace.store.path, timeout=0) as other:
            other.execute("UPDATE users SET name = name")
        other.close()
        written.append(progress.rows)
        return True

    assert bring(workspace, file, on_error="skip", watch=somebody_else).prompts == 2500
    assert written == [1000, 2000, 2500]


def test_one_import_at_a_time_in_the_background(workspace: Workspace, tmp_path: Path) -> None:
    owner, importer = local_owner(workspace.store), Importer(workspace.store)
    with workspace.store.write():  # holds it up
        importer.start(put(tmp_path / "f.jsonl", GOOD), owner, 1, "stop", None)
        with pytest.raises(InputError, match=r"f\.jsonl is being imported"):
            importer.start(tmp_path / "f.jsonl", owner, 1, "stop", None)
    running = importer.last
    assert running is not None
    wait_for(lambda: running.over)
    assert running.result is not None
    assert running.result.rankings == 1
    importer.start(put(tmp_path / "bad.jsonl", "{"), owner, 1, "stop", None)
    wait_for(lambda: importer.last is not None and importer.last.over)
    assert importer.last is not None
    assert importer.last.problem.startswith("bad.jsonl:1: not JSON")


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["prompt", "chosen", "rejected"], {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
        (["instruction", "response"], {"prompt": "instruction", "completion": "response"}),
        (
            ["Question", "answer_a", "answer_b", "winner", "Rater"],
            {"prompt": "Question", "completions": ["answer_a", "answer_b"], "winner": "winner", "annotator": "Rater"},
        ),
        (["messages"], {}),
    ],
)
def test_columns_are_guessed(names: list[str], expected: dict[str, Any]) -> None:
    assert column_names.guess(names) == expected


def test_a_table_of_votes(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "votes.csv"
    file.write_text(
        "Question,answer_a,answer_b,winner,Rater\nWhy?,x,y,B,ann\nHow?,x,y,tie,bob\nWho?,x,y,answer_a,bob\n"
    )
    assert bring(workspace, file).rankings == 3
    assert [ranking[2] for ranking in said(workspace)] == [[2, 1], [1, 1], [1, 2]]
    file.write_text("Question,answer_a,answer_b,winner\nWhy?,x,y,C\n")
    with pytest.raises(InputError, match='winner "C" names no completion'):
        bring(workspace, file)


def test_columns_can_be_changed(workspace: Workspace, tmp_path: Path) -> None:
    file = put(tmp_path / "f.jsonl", {"item": "Why?", "one": "x", "two": "y"})
    with pytest.raises(InputError, match='no "prompt"'):
        bring(workspace, file)
    with pytest.raises(InputError, match='there is no column "three"'):
        bring(workspace, file, mapping={"prompt": "three"})
    assert bring(workspace, file, mapping={"prompt": "item", "chosen": "two", "rejected": "one"}).rankings == 1
    assert said(workspace)[0][:3] == ("Why?", ["y", "x"], [1, 2])


def test_the_preview_shows_what_would_be_imported(tmp_path: Path) -> None:
    source = detect(put(tmp_path / "f.jsonl", GOOD, {"prompt": ""}, {"prompt": "x"}))
    first, bad, last = source.preview()
    assert isinstance(first[1], Item)
    assert (first[1].texts, first[1].ranks, first[1].annotator) == (("because", "no"), (1, 2), "ann")
    assert "empty" in str(bad[1])
    assert isinstance(last[1], Item)
    assert "columns prompt, completions, ranks, annotator" in str(source)


# ---------------------------------------------------------------- other tools

ARGILLA = {
    "id": "rec-1",
    "fields": {"prompt": "Why?", "response-1": "x", "response-2": "y", "response-3": "z"},
    "metadata": {"source": "a forum"},
    "vectors": {},
    "_server_id": "5f1b",
    "suggestions": {"ranking": {"value": ["response-1"], "score": None, "agent": "gpt"}},
    "responses": {
        "ranking": [
            {"value": ["response-2", "response-1", "response-3"], "user_id": "u1"},
            {"value": [{"value": "response1", "rank": 1}, {"value": "response2", "rank": 1}], "user_id": "u2"},
        ],
        "comment": [{"value": "the second is honest", "user_id": "u1"}],
    },
}
FLAT = {  # to_list(flatten=True) and to_datasets: fields, metadata and vectors side by side
    "id": "rec-2", "status": "completed", "inserted_at": None, "updated_at": None, "_server_id": "5f1c",
    "prompt": "How?", "response-1": "x", "response-2": "y", "source": "a forum", "embedding": [0.1, 0.2],
    "best.responses": ["response-2", "response-1"], "best.responses.users": ["u1", "u2"],
    "best.responses.status": ["submitted", "discarded"], "best.suggestion": "response-1",
    "best.suggestion.score": None, "best.suggestion.agent": None, "other.responses": None,
}  # fmt: skip
DATASET_1 = {  # version 1 on the Hugging Face Hub
    "external_id": "rec-3", "metadata": "{}", "prompt": "Which?", "response-1": "x", "response-2": "y",
    "ranking": [
        {"user_id": "u1", "status": "submitted", "value": {"rank": [2, 1], "value": ["response-1", "response-2"]}},
        {"user_id": "u2", "status": "discarded", "value": {"rank": [1, 2], "value": ["response-1", "response-2"]}},
    ],
    "why": {"user_id": ["u1"], "value": ["shorter"], "status": ["submitted"]},
    "ranking-suggestion": None, "ranking-suggestion-metadata": {"agent": None},
}  # fmt: skip
OLD_ARGILLA = {
    "fields": {"instruction": "Who?", "response-1": "x", "response-2": "y"},
    "responses": [
        {"user_id": "u1", "status": "submitted", "values": {"rank": {"value": [{"value": "response-2", "rank": 1},
                                                                              {"value": "response-1", "rank": 2}]}}}
    ],
}  # fmt: skip


def test_argilla(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "records.json"
    file.write_text(
        json.dumps([ARGILLA, {"id": "t", "fields": {"prompt": "Open?", "a": "1", "b": "2"}, "responses": {}}])
    )
    assert str(detect(file)) == "an Argilla export"
    result = bring(workspace, file)
    assert (result.rows, result.rankings, result.tasks) == (2, 2, 3)
    assert said(workspace) == [("Why?", ["x", "y", "z"], [2, 1, 3], "u1"), ("Why?", ["x", "y"], [1, 1], "u2")]
    assert scalar(workspace.store.db, "SELECT comment FROM latest_rankings LIMIT 1") == "the second is honest"
    bring(workspace, put(tmp_path / "flat.jsonl", FLAT))
    bring(workspace, put(tmp_path / "old.jsonl", OLD_ARGILLA))
    assert said(workspace)[2:] == [("How?", ["x", "y"], [2, 1], "u1"), ("Who?", ["x", "y"], [2, 1], "u1")]


def test_an_argilla_dataset_of_version_1(workspace: Workspace, tmp_path: Path) -> None:
    unanswered = DATASET_1 | {"external_id": "rec-4", "prompt": "When?", "ranking": [], "why": []}
    file = put(tmp_path / "hub.jsonl", unanswered, DATASET_1)
    assert str(detect(file)) == "an Argilla export"
    result = bring(workspace, file)
    assert (result.rows, result.rankings, result.tasks) == (2, 1, 2)
    assert said(workspace) == [("Which?", ["x", "y"], [2, 1], "u1")]


@pytest.mark.parametrize(
    ("names", "answers"),
    [
        (["answer_a", "answer_b", "source"], ["answer_a", "answer_b"]),
        (["textA", "textB", "context"], ["textA", "textB"]),
        (["response 1", "response 2", "response 3", "model_1", "model_2"], ["response 1", "response 2", "response 3"]),
        (["chosen", "rejected"], []),
        (["answer_1", "answer_2", "model_1", "model_2"], []),
    ],
)
def test_answers_are_told_from_other_texts_by_their_numbers(names: list[str], answers: list[str]) -> None:
    assert foreign._siblings(names) == answers


def studio(value: dict[str, Any], data: dict[str, Any], **more: Any) -> dict[str, Any]:
    result = [{"from_name": "a", "to_name": "answer1,answer2", "type": "x", "value": value}]
    annotation = {"id": 1, "completed_by": 7, "was_cancelled": False, "result": result}
    return {"id": 1, "data": data, "annotations": [annotation | more]}


def test_label_studio(workspace: Workspace, tmp_path: Path) -> None:
    pair = {"prompt": "Why?", "answer1": "x", "answer2": "y", "source": "somewhere"}
    items = [{"id": "i", "body": "x"}, {"id": "ii", "body": "y"}, {"id": "iii", "title": "z"}]
    file = tmp_path / "export.json"
    file.write_text(
        json.dumps(
            [
                studio({"selected": "right"}, pair),
                studio({"selected": "left"}, pair, completed_by={"email": "a@b.c"}),
                studio({"selected": "left"}, pair, was_cancelled=True, completed_by=9),
                studio({"ranker": {"rank": ["iii", "i", "ii"]}}, {"prompt": "How?", "items": items}),
                studio({"ranker": ["ii", "iii", "i"]}, {"prompt": "How?", "items": items}, completed_by=8),
            ]
        )
    )
    assert str(detect(file)) == "a Label Studio export"
    assert bring(workspace, file).rankings == 4
    assert said(workspace) == [
        ("Why?", ["x", "y"], [2, 1], "label-studio-7"),
        ("Why?", ["x", "y"], [1, 2], "a@b.c"),
        ("How?", ["x", "y", "z"], [2, 3, 1], "label-studio-7"),
        ("How?", ["x", "y", "z"], [3, 1, 2], "label-studio-8"),
    ]


def test_label_studio_tags_that_are_named_otherwise_than_the_data(workspace: Workspace, tmp_path: Path) -> None:
    data = {"prompt": "Why?", "source": "a forum", "text1": "x", "text2": "y"}
    export = studio({"selected": "right"}, data)
    export["annotations"][0]["result"][0]["to_name"] = "txt-1,txt-2"
    person = {"id": 3, "first_name": "Ann", "last_name": "", "email": "ann@lab.example", "initials": "an"}
    export["annotations"][0] |= {"completed_by": person, "lead_time": 4.2, "ground_truth": False, "result_count": 1}
    export |= {"drafts": [], "predictions": [{"result": [], "score": None}], "meta": {}, "project": 1}
    open_task = {"id": 2, "data": data | {"prompt": "How?"}, "annotations": [], "predictions": []}
    file = tmp_path / "export.json"
    file.write_text(json.dumps([export, open_task]))
    assert bring(workspace, file).tasks == 2
    assert said(workspace) == [("Why?", ["x", "y"], [2, 1], "ann@lab.example")]
    sql = "SELECT group_concat(c.text) FROM task_completions AS tc JOIN completions AS c ON c.id = tc.completion_id"
    assert scalar(workspace.store.db, f"{sql} WHERE tc.task_id = 2") == "x,y"


def test_buckets_are_no_ranking_and_leave_nothing(workspace: Workspace, tmp_path: Path) -> None:
    items = [{"id": "i", "body": "x"}, {"id": "ii", "body": "y"}]
    good = [studio({"ranker": {"rank": ["ii", "i"]}}, {"prompt": f"{n}?", "items": items}) for n in range(2500)]
    bad = studio({"ranker": {"_": ["i"], "relevant": ["ii"], "biased": []}}, {"prompt": "How?", "items": items})
    file = tmp_path / "export.json"
    file.write_text(json.dumps([*good, bad]))
    with pytest.raises(InputError, match="only one list in order is a ranking"):
        bring(workspace, file)
    for table in ("prompts", "completions", "tasks", "assignments", "events", "in_force"):
        assert scalar(workspace.store.db, f"SELECT count(*) FROM {table}") == 0, table


def test_a_contradiction_with_what_is_stored_leaves_nothing_either(workspace: Workspace, tmp_path: Path) -> None:
    """Every row is readable by itself: only writing the last one finds the id taken."""
    rows_of_file = [{"id": f"r{n}", "prompt": f"{n}?", "chosen": "x", "rejected": "y"} for n in range(2500)]
    file = put(tmp_path / "rows.jsonl", *rows_of_file, {"id": "r0", "prompt": "Another?"})
    with pytest.raises(InputError, match=r"rows\.jsonl:2501: the prompt id 'r0' is taken"):
        bring(workspace, file)
    for table in ("prompts", "completions", "tasks", "assignments", "events", "in_force"):
        assert scalar(workspace.store.db, f"SELECT count(*) FROM {table}") == 0, table
    assert bring(workspace, file, on_error="skip").rankings == 2500


@pytest.mark.parametrize(
    "content",
    [
        [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "because"}],
        [[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "because"}]],
        [{"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "because"}]}],
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "because"}]},
    ],
)
def test_chat_logs_are_demonstrations(workspace: Workspace, tmp_path: Path, content: Any) -> None:
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(content))
    assert bring(workspace, file) == Imported(rows=1, prompts=1, demonstrations=1)


def test_a_chat_log_with_a_preference(workspace: Workspace, tmp_path: Path) -> None:
    row = {"conversations": [{"from": "human", "value": "Why?"}]}
    row |= {"chosen": {"from": "gpt", "value": "because"}, "rejected": {"from": "gpt", "value": "no"}}
    assert bring(workspace, put(tmp_path / "chat.jsonl", row)).rankings == 1
    with pytest.raises(InputError, match="nobody knows the speaker"):
        bring(workspace, put(tmp_path / "bad.jsonl", {"conversations": [{"from": "parrot", "value": "hi"}]}))


# ---------------------------------------------------------------- folders and hostile files


def dataset(folder: Path) -> Path:
    from datasets import Dataset, DatasetDict

    part = Dataset.from_list([{"prompt": f"Question {n}?", "chosen": "a", "rejected": "b"} for n in range(3)])
    DatasetDict({"train": part, "test": part.select([0])}).save_to_disk(str(folder))
    return folder


def test_a_saved_dataset_of_several_splits_also_zipped(workspace: Workspace, tmp_path: Path) -> None:
    folder = dataset(tmp_path / "saved")
    assert bring(workspace, folder).rankings == 3
    packed = tmp_path / "saved.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
    assert bring(workspace, packed) == Imported(rows=4)


def test_a_folder_cannot_lead_outside(workspace: Workspace, tmp_path: Path) -> None:
    dataset(tmp_path / "other")
    folder = dataset(tmp_path / "saved") / "train"
    (secret,) = (tmp_path / "other" / "train").glob("*.arrow")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": f"../../other/train/{secret.name}"}]}))
    with pytest.raises(InputError, match="leads outside of the folder"):
        bring(workspace, folder)
    parquet = tmp_path / "parquet"
    parquet.mkdir()
    (parquet / "x.parquet").symlink_to(secret)
    with pytest.raises(InputError, match="leads outside of the folder"):
        bring(workspace, parquet)
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../evil.jsonl", json.dumps(GOOD))
    with pytest.raises(InputError, match="leads outside of the folder"):
        bring(workspace, tmp_path / "evil.zip")
    assert not (tmp_path.parent / "evil.jsonl").exists()


def test_bombs_are_refused(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.formats.FREE", 2**20)
    monkeypatch.setattr("data.containers.FREE", 2**20)
    monkeypatch.setattr("data.formats.MAX_LINE", 2**22)
    lines = tmp_path / "bomb.jsonl.gz"
    with gzip.open(lines, "wb") as file:
        file.write(b"\n" * 2**23)
    with pytest.raises(InputError, match="unpacks to over 200 times its size"):
        bring(workspace, lines)
    with gzip.open(tmp_path / "line.jsonl.gz", "wb") as file:
        file.write(b" " * 2**23)
    with pytest.raises(InputError, match="longer than 4,194,304 bytes"):
        bring(workspace, tmp_path / "line.jsonl.gz")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.jsonl", b"\n" * 2**23)
    with pytest.raises(InputError, match="unpacks to over 200 times its size"):
        bring(workspace, tmp_path / "bomb.zip")


@pytest.mark.parametrize("content", ["[1, 2]", "[{]", '[{"prompt": "x"}', "[" * 100_000, "7", "{}", ""])
def test_broken_json_is_one_clear_line(workspace: Workspace, tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError) as caught:
        bring(workspace, tmp_path / "x.json")
    assert "\n" not in str(caught.value)
