"""The store: what is written is there, what was said cannot be changed, what goes wrong is said plainly."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from data.records import InputError
from labeler import migrations
from labeler.store import Store, explain, rows, scalar
from labeler.users import local_owner
from labeler.workspace import open_workspace
from tests.labeler.labels import make_workspace, rank


def test_every_connection_is_durable_and_checks_references(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")
    seen: list[tuple[str, int, int]] = []

    def look() -> None:
        pragmas = ("journal_mode", "synchronous", "foreign_keys")
        seen.append(tuple(scalar(store.db, f"PRAGMA {name}") for name in pragmas))  # type: ignore[arg-type]

    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [("wal", 2, 1)] * 2  # 2 = FULL


def test_a_write_ends_after_a_sync_that_began_after_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one such sync serves all who wait: the first one lasts until all have committed, a second one ends it."""
    path = tmp_path / "a.sqlite"
    store = Store(path)
    writers = 6
    synced: list[set[str]] = []  # who was in the log when each sync that has ended began
    begun: list[set[str]] = []
    late: set[str] = set()
    syncing = threading.Event()
    fsync = os.fsync

    def committed() -> set[str]:
        connection = sqlite3.connect(path)
        found = {name for (name,) in connection.execute("SELECT name FROM users")}
        connection.close()
        return found

    def slow(descriptor: int) -> None:
        assert os.path.samestat(os.fstat(descriptor), os.stat(f"{path}-wal"))
        found = committed()
        begun.append(found)
        syncing.set()
        if len(begun) == 1:
            deadline = time.monotonic() + 30
            while len(committed()) < writers and time.monotonic() < deadline:
                time.sleep(0.01)
        fsync(descriptor)
        synced.append(found)

    def add(name: str) -> None:
        with store.write() as db:
            db.execute("INSERT INTO users (name, role) VALUES (?, 'owner')", [name])
        if not any(name in found for found in synced):
            late.add(name)

    monkeypatch.setattr(os, "fsync", slow)
    threads = [threading.Thread(target=add, args=[f"user-{number}"]) for number in range(writers)]
    threads[0].start()
    assert syncing.wait(timeout=30)
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert not late
    assert begun == [{"user-0"}, {f"user-{number}" for number in range(writers)}]


def test_a_disk_that_failed_once_is_not_believed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "a.sqlite")

    def broken(_: int) -> None:
        raise OSError(28, "No space left on device")

    def add(name: str) -> None:
        with store.write() as db:
            db.execute("INSERT INTO users (name, role) VALUES (?, 'owner')", [name])

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(sqlite3.OperationalError, match="No space left") as caught:
            add("ann")
    assert "free some space" in explain(caught.value)
    with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
        add("bob")
    again = Store(tmp_path / "a.sqlite")
    with again.write() as db:
        db.execute("INSERT INTO users (name, role) VALUES ('cleo', 'owner')")
    assert scalar(again.db, "SELECT count(*) FROM users WHERE name = 'cleo'") == 1


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")

    def fail() -> None:
        with store.write() as db:
            db.execute("INSERT INTO users (name, role) VALUES ('ann', 'owner')")
            with store.write():  # a part of the outer one
                db.execute("INSERT INTO users (name, role) VALUES ('bob', 'owner')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert scalar(store.db, "SELECT count(*) FROM users") == 0
    with store.write() as db:
        db.execute("INSERT INTO users (name, role) VALUES ('ann', 'owner')")
    assert scalar(store.db, "SELECT count(*) FROM users") == 1


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    """Read, then write, in many threads: a deferred transaction would fail with "database is locked"."""
    store = Store(tmp_path / "a.sqlite")
    with store.write() as db:
        db.execute("INSERT INTO users (name, role, created_at) VALUES ('counter', 'owner', 0)")

    def add() -> None:
        for _ in range(20):
            with store.write() as db:
                value = scalar(db, "SELECT created_at FROM users")
                db.execute("UPDATE users SET created_at = ?", [value + 1])

    threads = [threading.Thread(target=add) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert scalar(store.db, "SELECT created_at FROM users") == 100


def test_all_write_over_one_connection_and_nobody_else_reads_over_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")
    seen: list[int] = []
    writers = set()

    def look() -> None:
        seen.append(scalar(store.db, "SELECT count(*) FROM users"))

    def add(name: str) -> None:
        reader = store.db
        with store.write() as db:
            writers.add(id(db))
            assert store.db is db is not reader
            db.execute("INSERT INTO users (name, role) VALUES (?, 'owner')", [name])
            with store.write() as inner:
                assert inner is db
            beside = threading.Thread(target=look)
            beside.start()
            beside.join()
        assert store.db is reader
        look()

    add("ann")
    other = threading.Thread(target=add, args=["bob"])
    other.start()
    other.join()
    assert seen == [0, 1, 1, 2]  # what is being written is not seen before it is there
    assert len(writers) == 1
    store.close()
    add("cleo")
    assert seen[-2:] == [2, 3]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET payload = '{}'",
        "DELETE FROM events",
        "INSERT OR REPLACE INTO events SELECT id, uuid, assignment_id, user_id, 'skip', source, payload, client_time,"
        " created_at FROM events",
    ],
)
def test_events_cannot_be_changed_even_by_hand(tmp_path: Path, statement: str) -> None:
    workspace = make_workspace(tmp_path, 1)
    rank(workspace, [1, 2, 3, 4])
    connection = sqlite3.connect(workspace.store.path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()


def test_columns_have_types(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")
    with pytest.raises(sqlite3.IntegrityError), store.write() as db:
        db.execute("INSERT INTO users (name, role, created_at) VALUES ('ann', 'owner', 'yesterday')")
    with pytest.raises(sqlite3.IntegrityError), store.write() as db:
        db.execute("INSERT INTO users (name, role) VALUES ('ann', 'king')")


def test_migrations_are_applied_once_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    first = rows(Store(path).db, "SELECT name, applied_at FROM _sqlite_migrations ORDER BY id")
    assert [row["name"] for row in first][:1] == ["m001_labeling"]
    assert rows(Store(path).db, "SELECT name, applied_at FROM _sqlite_migrations ORDER BY id") == first


def test_a_newer_workspace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with Store(path).write() as db:
        db.execute(
            "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES (?, 'm999_future', '')",
            [migrations.steps.name],
        )
    with pytest.raises(InputError, match="newer version"):
        Store(path)


def test_a_backup_is_complete_and_never_overwrites(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 1)
    rank(workspace, [1, 2, 3, 4])
    copy = tmp_path / "copy.sqlite"
    workspace.store.backup(copy)
    assert scalar(Store(copy).db, "SELECT count(*) FROM events") == 1
    with pytest.raises(InputError, match="exists already"):
        workspace.store.backup(copy)


def test_what_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "preferences.sqlite").write_bytes(b"no database at all, " * 100)
    with pytest.raises(InputError, match="not a usable SQLite database"):
        open_workspace(tmp_path, "model", seed_file=None)


def test_a_locked_database_is_said_to_be_locked(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")
    store.busy_timeout = 0.05
    store.close()
    other = sqlite3.connect(tmp_path / "a.sqlite")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError) as caught, store.write():
        pass
    assert "another program" in explain(caught.value)
    other.close()


def test_a_workspace_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="set WORKSPACE"):
        open_workspace(tmp_path / "file" / "workspace", "model", seed_file=None)


def test_the_base_model_is_checkpoint_one_and_a_second_base_gets_its_own(tmp_path: Path) -> None:
    first = open_workspace(tmp_path, "model-a", seed_file=None)
    assert first.base_checkpoint_id == 1
    assert open_workspace(tmp_path, "model-a", seed_file=None).base_checkpoint_id == 1
    assert open_workspace(tmp_path, "other/model-a", seed_file=None).base_checkpoint_id == 2
    names = [row["name"] for row in rows(first.store.db, "SELECT name FROM checkpoints ORDER BY id")]
    assert names == ["base model-a", "base other/model-a"]


def test_the_seed_is_taken_once(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path, 3)
    assert scalar(workspace.store.db, "SELECT count(*) FROM tasks") == 3
    again = make_workspace(tmp_path, 5)
    assert scalar(again.store.db, "SELECT count(*) FROM tasks") == 3
    completion = rows(again.store.db, "SELECT * FROM completions ORDER BY id LIMIT 1")[0]
    assert completion["checkpoint_id"] == 1  # sampled from the base model of this workspace
    assert completion["finish_reason"] == "stop"
    assert '"seed": 1' in completion["sampling"]
    assert scalar(again.store.db, "SELECT count(*) FROM users") == 1
    assert local_owner(again.store).role == "owner"
