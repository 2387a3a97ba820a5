"""Training data out of the store, and files into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.formats import read_demonstrations, read_prompts, read_rankings
from data.preferences import count_comparisons, file_sha256
from data.records import InputError
from labeler import events, history, rankings, snapshots
from labeler.imports import Imported, import_file
from labeler.store import rows, scalar
from labeler.users import ensure_user, local_owner
from labeler.workspace import Workspace, open_workspace
from tests.labeler.labels import MODEL, make_workspace, new_id, rank


def write(workspace: Workspace, kind: str, path: Path, **filters: Any) -> list[dict]:
    snapshots.write_snapshot(workspace.store, path, kind, filters, local_owner(workspace.store))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def bring_in(workspace: Workspace, path: Path, rows: list[dict]) -> Imported:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return import_file(workspace.store, path, local_owner(workspace.store))


@pytest.fixture
def labeled(tmp_path: Path) -> Workspace:
    """Six tasks: full, with ties, half ranked, all bad, taken back, not ranked."""
    workspace = make_workspace(tmp_path, 6)
    rank(workspace, [2, 1, 3, 4])
    rank(workspace, [1, 1, 2, 2])
    rank(workspace, [None, 2, None, 1])
    rank(workspace, [1, 2, 3, 4], all_bad=True)
    rank(workspace, [4, 3, 2, 1])
    history.undo(workspace.store, local_owner(workspace.store), new_id())
    return workspace


def test_preferences_are_the_rankings_in_force(labeled: Workspace, tmp_path: Path) -> None:
    found = write(labeled, "preferences", tmp_path / "p.jsonl")
    assert [row["ranks"] for row in found] == [[2, 1, 3, 4], [1, 1, 2, 2], [None, 2, None, 1]]
    assert found[0]["prompt"] == [{"role": "user", "content": "Question 1?"}]
    assert found[0]["completions"] == [f"answer {letter} to 1" for letter in "abcd"]
    assert {(row["annotator"], row["weight"], row["source"]) for row in found} == {("owner", 1.0, "task")}
    events = [row["uuid"] for row in rows(labeled.store.db, "SELECT uuid FROM events ORDER BY id")]
    assert [row["event"] for row in found] == events[:3]
    read = read_rankings(tmp_path / "p.jsonl")
    counts = snapshots.count(labeled.store)
    assert (len(read), count_comparisons(read)) == (counts["rankings"], counts["comparisons"]) == (3, 6 + 6 + 1)
    assert counts["ties"] == 2
    assert counts["annotators"] == 1
    assert counts["prompts"] == 6


def test_demonstrations_are_what_stands_alone_on_top(labeled: Workspace, tmp_path: Path) -> None:
    found = write(labeled, "demonstrations", tmp_path / "d.jsonl")
    assert [row["completion"] for row in found] == ["answer b to 1", "answer d to 3"]
    assert snapshots.count(labeled.store)["demonstrations"] == len(read_demonstrations(tmp_path / "d.jsonl")) == 2
    with pytest.raises(InputError, match="no demonstrations"):
        write(labeled, "demonstrations", tmp_path / "e.jsonl", top_ranked_as_demonstrations=False)
    assert not (tmp_path / "e.jsonl").exists()


def test_a_rewrite_is_a_demonstration(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    owner = local_owner(workspace.store)
    with workspace.store.write() as db:
        rankings.record_ranking(
            db, owner, 1, [1, 1, 2, 2], source="task", event_id=new_id(), more={"rewrite": "Better words."}
        )
    assert [row["completion"] for row in write(workspace, "demonstrations", tmp_path / "d.jsonl")] == ["Better words."]


def test_prompts_are_all_prompts(labeled: Workspace, tmp_path: Path) -> None:
    write(labeled, "prompts", tmp_path / "q.jsonl")
    assert len(read_prompts(tmp_path / "q.jsonl")) == 6
    assert len(write(labeled, "prompts", tmp_path / "q.jsonl", categories=["advice"])) == 3


def test_a_snapshot_says_what_it_holds_and_can_be_made_again(labeled: Workspace, tmp_path: Path) -> None:
    owner = local_owner(labeled.store)
    first = snapshots.write_snapshot(labeled.store, tmp_path / "a.jsonl", "preferences", {}, owner)
    assert first.sha256 == file_sha256(tmp_path / "a.jsonl")
    assert first.event_high_water == scalar(labeled.store.db, "SELECT max(id) FROM events")
    rank(labeled, [1, 2, 3, 4])
    # a correction of the first ranking, after the snapshot
    rankings.record_event(labeled.store, owner, events.Event(new_id(), 1, "submit", [4, 4, 4, 1]))
    now = snapshots.write_snapshot(labeled.store, tmp_path / "b.jsonl", "preferences", {}, owner)
    assert now.sha256 != first.sha256
    then = {"event_high_water": first.event_high_water}
    again = snapshots.write_snapshot(labeled.store, tmp_path / "c.jsonl", "preferences", then, owner)
    assert again.sha256 == first.sha256
    stored = rows(labeled.store.db, "SELECT sha256, kind, created_by FROM snapshots ORDER BY id")
    assert [row["sha256"] for row in stored] == [first.sha256, now.sha256, first.sha256]
    assert {(row["kind"], row["created_by"]) for row in stored} == {("preferences", owner.id)}


def test_filters_choose_people_and_sources(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 3)
    with workspace.store.write() as db:
        ann, bob = ensure_user(db, "Ann"), ensure_user(db, "bob")
    rank(workspace, [1, 2, 3, 4], ann)
    rank(workspace, [1, 2, 3, 4], bob)
    rank(workspace, [1, 2, 3, 4], bob)
    assert snapshots.count(workspace.store)["rankings"] == 3
    assert snapshots.count(workspace.store, {"annotators": ["ann"]})["rankings"] == 1
    assert snapshots.count(workspace.store, {"exclude_annotators": ["ANN"]})["rankings"] == 2
    assert snapshots.count(workspace.store, {"sources": ["compare"]})["rankings"] == 0
    assert snapshots.count(workspace.store, {"checkpoint_ids": [2]})["rankings"] == 0
    assert snapshots.count(workspace.store, {"since": 0, "until": 1})["rankings"] == 0
    assert snapshots.count(workspace.store, {"annotators": None})["rankings"] == 3
    with pytest.raises(InputError, match="unknown filter annotator"):
        snapshots.count(workspace.store, {"annotator": ["ann"]})


def test_empty_completions_do_not_spoil_a_row(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "w", MODEL, seed_file=None)
    owner = local_owner(workspace.store)
    messages: Any = [{"role": "user", "content": "Hello?"}]
    for texts, ranks in ((["a", " ", "b"], [1, 3, 2]), (["a", ""], [1, 2])):
        rankings.record_comparison(
            workspace.store, owner, messages, [(text, 1, {}) for text in texts], ranks, event_id=new_id()
        )
    found = write(workspace, "preferences", tmp_path / "p.jsonl")
    assert [(row["completions"], row["ranks"]) for row in found] == [(["a", "b"], [1, 2])]
    assert len(read_rankings(tmp_path / "p.jsonl")) == 1


def test_nothing_to_learn_from_is_said(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    with pytest.raises(InputError, match="no rankings to learn from"):
        write(workspace, "preferences", tmp_path / "p.jsonl")
    assert scalar(workspace.store.db, "SELECT count(*) FROM snapshots") == 0


def test_an_export_comes_back_as_it_was(labeled: Workspace, tmp_path: Path) -> None:
    exported = write(labeled, "preferences", tmp_path / "p.jsonl")
    other = open_workspace(tmp_path / "other", MODEL, seed_file=None)
    result = import_file(other.store, tmp_path / "p.jsonl", local_owner(other.store))
    assert (result.rows, result.prompts, result.tasks, result.rankings) == (3, 3, 3, 3)
    again = write(other, "preferences", tmp_path / "q.jsonl")
    fields = ("prompt", "completions", "ranks", "annotator", "weight")
    assert [[row[f] for f in fields] for row in again] == [[row[f] for f in fields] for row in exported]
    assert str(import_file(other.store, tmp_path / "p.jsonl", local_owner(other.store))).endswith("here already)")


def test_importing_twice_adds_nothing_twice(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "w", MODEL, seed_file=None)
    given = [
        {"prompt": "One?", "chosen": "yes", "rejected": "no", "annotator": "ann", "weight": 2.0, "margin": 0.5},
        {"prompt": "One?", "chosen": "yes", "rejected": "no", "annotator": "bob"},
        {"prompt": "Two?", "completions": ["a", "b", "c"]},
        {"prompt": "Three?", "completion": "three"},
        {"prompt": "Four?"},
        {"messages": [{"role": "user", "content": "Five?"}, {"role": "assistant", "content": "five"}]},
    ]
    first = bring_in(workspace, tmp_path / "f.jsonl", given)
    assert first == Imported(rows=6, prompts=5, tasks=2, rankings=2, demonstrations=2)
    second = bring_in(workspace, tmp_path / "f.jsonl", given)
    assert second == Imported(rows=6)
    assert [row["overlap"] for row in rows(workspace.store.db, "SELECT overlap FROM tasks ORDER BY id")] == [2, 1]
    found = write(workspace, "preferences", tmp_path / "p.jsonl")
    assert [(row["annotator"], row["weight"], row.get("margin")) for row in found] == [
        ("ann", 2.0, 0.5),
        ("bob", 1.0, None),
    ]
    written = [row["completion"] for row in write(workspace, "demonstrations", tmp_path / "d.jsonl")]
    assert written == ["three", "five", "yes"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"prompt": "x", "completions": ["a", "b"], "ranks": [1]}', "2 completions but 1 ranks"),
        ('{"prompt": "x", "completions": ["a", ""]}', "completion 2 is empty"),
        ('{"prompt": "x", "completions": ["a"]}', "2 to 9 completions"),
        ('{"prompt": "x", "completions": "a"}', "must be a list"),
        ('{"prompt": ""}', "empty"),
        ('{"text": "x"}', 'no "prompt"'),
        ('{"prompt": [{"role": "robot", "content": "x"}]}', "unknown role"),
        ("{not json", "not JSON"),
        ("[1, 2]", "must be a JSON object"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_imported(tmp_path: Path, bad: str, message: str) -> None:
    workspace = open_workspace(tmp_path / "w", MODEL, seed_file=None)
    file = tmp_path / "f.jsonl"
    file.write_text('{"prompt": "fine"}\n' + bad + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        import_file(workspace.store, file, local_owner(workspace.store))
    assert "f.jsonl:2" in str(caught.value)
    assert scalar(workspace.store.db, "SELECT count(*) FROM prompts") == 0
