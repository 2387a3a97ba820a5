"""A person's data is gone: from what is in force, from the index, from the file itself; what was done stays known."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from data.records import InputError
from labeler import auth, events, history, rankings, search, snapshots
from labeler.erasure import clean, erase
from labeler.imports import import_file
from labeler.store import one, rows, scalar
from labeler.tasks import next_assignment
from labeler.users import User, add_user, ensure_user, local_owner
from labeler.workspace import Workspace
from tests.labeler.labels import make_workspace, new_id, rank

MARK = "Xylophonmarker"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path, 4)


@pytest.fixture
def ann(workspace: Workspace) -> User:
    """Somebody who ranked, corrected, wrote, drafted and compared; their marker is in everything they said."""
    store = workspace.store
    user = add_user(store, f"{MARK} Ann", "annotator", "long enough")
    auth.start_session(store, user)
    done = rank(workspace, [1, 2, 3, 4], user, comment=f"{MARK} first")
    rankings.record_event(
        store, user, events.Event(new_id(), done.id, "submit", [1, 2, 2, 2], comment=MARK, rewrite=f"Better, {MARK}")
    )
    draft = next_assignment(store, user)
    assert draft is not None
    history.save_draft(store, user, draft.id, {"ranks": [1, None, None, None], "comment": MARK})
    rankings.record_comparison(
        store, user, [{"role": "user", "content": f"Tell {MARK}"}], [(f"{MARK} a", 1, {}), ("b", 1, {})], [1, 2],
        event_id=new_id(), comment=MARK,
    )  # fmt: skip
    file = workspace.folder / "demo.jsonl"
    file.write_text(json.dumps({"prompt": "Question 1?", "completion": f"By hand: {MARK}", "annotator": user.name}))
    import_file(store, file, local_owner(store))
    file.unlink()
    return user


def found_on_disk(folder: Path) -> list[str]:
    """Files of the workspace that hold the marker, in any case."""
    return sorted(
        path.name for path in folder.rglob("*") if path.is_file() and MARK.lower().encode() in path.read_bytes().lower()
    )


def test_nothing_of_it_is_left_in_the_files(workspace: Workspace, ann: User) -> None:
    store, owner = workspace.store, local_owner(workspace.store)
    kept, folder = workspace.snapshots_folder / "kept.jsonl", workspace.folder
    made = snapshots.write_snapshot(store, kept, "preferences", {"annotators": [ann.name]}, owner)
    store.db.execute("PRAGMA wal_checkpoint")
    assert "preferences.sqlite" in found_on_disk(folder)
    assert "kept.jsonl" in found_on_disk(folder)
    typed = scalar(store.db, "SELECT id FROM prompts WHERE source = 'compare'")
    copies = {  # what other parts of the app wrote down
        "speed/1.texts": json.dumps({"responses": [MARK]}),
        "work/evaluate-1/scratch/held-out.jsonl": MARK,
        "evaluations/1/result.json": json.dumps({"win_rate": 1, "samples": [{"prompt": MARK}]}),
        "runs/0001-sample/data.jsonl": json.dumps({"id": typed, "prompt": MARK}) + '\n{"id": 0, "prompt": "kept"}\n',
    }
    for name, text in copies.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    result = erase(store, owner, ann.id, "delete")
    assert result.clean
    assert found_on_disk(folder) == []
    assert json.loads((folder / "evaluations/1/result.json").read_text()) == {"win_rate": 1, "samples": []}
    assert json.loads((folder / "runs/0001-sample/data.jsonl").read_text()) == {"id": 0, "prompt": "kept"}
    assert result.counts["events"] == 3
    assert (result.counts["drafts"], result.counts["answers"], result.counts["prompts"]) == (1, 1, 1)
    assert search.find(store, search.Query(words=MARK)).rows == []
    marked = one(store.db, "SELECT erased_at, filters FROM snapshots WHERE id = ?", [made.id])
    assert marked is not None
    assert marked["erased_at"] is not None
    assert json.loads(marked["filters"])["annotators"] == [f"erased-{ann.id}"]
    (record,) = rows(store.db, "SELECT * FROM erasures")
    assert (record["user_id"], record["erased_by"]) == (ann.id, owner.id)
    assert json.loads(record["counts"]) == result.counts
    assert record["cleaned_at"] is not None


def test_what_they_said_counts_no_more_and_their_tasks_wait(workspace: Workspace, ann: User) -> None:
    store, owner = workspace.store, local_owner(workspace.store)
    with store.write() as db:
        bob = ensure_user(db, "bob")
    rank(workspace, [4, 3, 2, 1], bob)
    assert snapshots.count(store)["rankings"] == 3
    erase(store, owner, ann.id, "keep")
    assert [row["annotator"] for row in search.find(store, search.Query()).rows] == ["bob"]
    assert snapshots.count(store)["rankings"] == 1
    assert {row["payload"] for row in rows(store.db, "SELECT payload FROM events WHERE user_id = ?", [ann.id])} == {
        '{"erased": true}'
    }
    mine = rows(store.db, "SELECT name, password_hash, disabled_at FROM users WHERE id = ?", [ann.id])[0]
    assert (mine["name"], mine["password_hash"]) == (f"erased-{ann.id}", None)
    assert scalar(store.db, "SELECT count(*) FROM sessions") == 0
    waiting = next_assignment(store, bob)
    assert waiting is not None
    assert waiting.messages[-1]["content"] == "Question 1?"  # the task that Ann had ranked
    demonstrations = [row["completion"] for row in snapshots.demonstrations(store.db, {})]
    assert demonstrations == ["answer d to 3"]  # bob's best; neither the rewrite nor what was written by hand
    with store.write() as db:
        db.execute("INSERT INTO search (search) VALUES ('integrity-check')")


def test_snapshots_without_them_stay_as_they_are(workspace: Workspace, ann: User, tmp_path: Path) -> None:
    store, owner = workspace.store, local_owner(workspace.store)
    rank(workspace, [4, 3, 2, 1], owner)
    folder = workspace.snapshots_folder
    for name, filters in (
        ("with", {}),
        ("without", {"exclude_annotators": [ann.name]}),
        ("only", {"annotators": ["owner"]}),
    ):
        snapshots.write_snapshot(store, folder / f"{name}.jsonl", "preferences", filters, owner)
    erase(store, owner, ann.id, "delete")
    marked = {Path(row["path"]).stem: row["erased_at"] is not None for row in rows(store.db, "SELECT * FROM snapshots")}
    assert marked == {"with": True, "without": False, "only": False}
    assert sorted(path.name for path in folder.iterdir()) == ["only.jsonl", "without.jsonl"]


def test_files_may_be_kept(workspace: Workspace, ann: User) -> None:
    store, owner = workspace.store, local_owner(workspace.store)
    path = workspace.snapshots_folder / "p.jsonl"
    snapshots.write_snapshot(store, path, "preferences", {}, owner)
    assert erase(store, owner, ann.id, "keep").counts["snapshots"] == 1
    assert found_on_disk(workspace.folder) == ["p.jsonl"]


def test_events_change_in_this_way_only(workspace: Workspace, ann: User) -> None:
    db = workspace.store.db
    refused = (
        "UPDATE events SET payload = '{}'",
        'UPDATE events SET payload = \'{"erased": true, "ranks": [1]}\'',
        "UPDATE events SET payload = '{\"erased\": true}', user_id = 1",
        "UPDATE events SET payload = '{\"erased\": true}', kind = 'skip'",
        "UPDATE events SET payload = '{\"erased\": true}', client_time = 5",
        "UPDATE events SET created_at = 5",
        "DELETE FROM events",
    )
    for sql in refused:
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            db.execute(sql)
    before = rows(db, "SELECT * FROM events ORDER BY id")
    erase(workspace.store, local_owner(workspace.store), ann.id, "keep")
    after = rows(db, "SELECT * FROM events ORDER BY id")
    assert [row | {"payload": ""} for row in after] == [row | {"payload": ""} for row in before]


def test_who_may_erase_whom(workspace: Workspace, ann: User) -> None:
    store, owner = workspace.store, local_owner(workspace.store)
    lead = add_user(store, "lee", "lead", "long enough")
    researcher = add_user(store, "rae", "researcher", "long enough")
    for by, whom, files, words in (
        (ann, lead.id, "keep", "may not delete"),
        (researcher, ann.id, "keep", "may not delete"),
        (lead, lead.id, "keep", "their own"),
        (lead, owner.id, "keep", "only an owner"),
        (lead, ann.id, "burn", '"delete" or "keep"'),
        (lead, 99, "keep", "no user 99"),
    ):
        with pytest.raises(InputError, match=words):
            erase(store, by, whom, files)
    assert scalar(store.db, "SELECT count(*) FROM erasures") == 0
    assert erase(store, lead, ann.id, "keep").clean


def test_a_busy_file_is_cleaned_later(workspace: Workspace, ann: User) -> None:
    store = workspace.store
    store.db.execute("PRAGMA busy_timeout = 50")
    with sqlite3.connect(store.path, isolation_level=None) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events").fetchone()
        assert not erase(store, local_owner(store), ann.id, "keep").clean
        assert scalar(store.db, "SELECT cleaned_at FROM erasures") is None
        reader.execute("COMMIT")
    reader.close()
    assert clean(store)
    assert scalar(store.db, "SELECT cleaned_at FROM erasures") is not None
    assert found_on_disk(workspace.folder) == []
