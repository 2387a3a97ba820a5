"""Passwords, sessions, and who a request belongs to."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from data.records import InputError
from labeler import auth, users
from labeler.__main__ import main
from labeler.store import Store, rows, scalar
from labeler.workspace import open_workspace


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "a.sqlite")


def test_without_a_password_anywhere_the_owner_needs_no_login(store: Store) -> None:
    user = auth.user_of(store, {})
    assert user is not None
    assert (user.name, user.role) == ("owner", "owner")
    assert not users.needs_login(store)
    with store.write() as db:
        users.ensure_user(db, "simulated")  # cannot log in, so nobody has to
    assert not users.needs_login(store)


def test_with_one_password_nobody_gets_in_without(store: Store) -> None:
    ann = users.add_user(store, "Ann", "annotator", "correct horse")
    assert users.needs_login(store)
    assert auth.user_of(store, {}) is None
    assert auth.user_of(store, {auth.COOKIE: "guess"}) is None
    token = auth.start_session(store, ann)
    assert auth.user_of(store, {auth.COOKIE: token}) == ann
    auth.end_session(store, token)
    assert auth.user_of(store, {auth.COOKIE: token}) is None


def test_a_session_survives_a_restart_and_its_token_is_not_in_the_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite")
    ann = users.add_user(store, "Ann", "annotator", "correct horse")
    token = auth.start_session(store, ann)
    assert auth.user_of(Store(tmp_path / "a.sqlite"), {auth.COOKIE: token}) == ann
    store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = (tmp_path / "a.sqlite").read_bytes()
    assert b"Ann" in content
    assert token.encode() not in content
    assert b"correct horse" not in content


def test_a_session_ends_with_time_with_a_new_password_and_when_disabled(store: Store) -> None:
    ann = users.add_user(store, "Ann", "annotator", "correct horse")
    for statement in (
        f"UPDATE sessions SET expires_at = {time.time() - 1}",
        "UPDATE users SET disabled_at = 1",
    ):
        token = auth.start_session(store, ann)
        with store.write() as db:
            db.execute(statement)
        assert auth.user_of(store, {auth.COOKIE: token}) is None or not users.needs_login(store)
        ann = users.add_user(store, "ann", "annotator", "correct horse")
    token = auth.start_session(store, ann)
    users.add_user(store, "Ann", "lead", "another horse")
    assert auth.user_of(store, {auth.COOKIE: token}) is None


def test_passwords(store: Store) -> None:
    users.add_user(store, "Ann", "annotator", "correct horse")
    assert users.check_password(store, "ann", "correct horse") is not None
    assert users.check_password(store, "ann", "Correct horse") is None
    assert users.check_password(store, "bob", "correct horse") is None
    with store.write() as db:
        users.ensure_user(db, "nopassword")
    assert users.check_password(store, "nopassword", "") is None
    assert users.hash_password("x") != users.hash_password("x")  # salted
    with pytest.raises(InputError, match="too short"):
        users.add_user(store, "bob", "annotator", "short")
    with pytest.raises(InputError, match="unknown role"):
        users.add_user(store, "bob", "king", "long enough")
    with pytest.raises(InputError, match="name needs"):
        users.add_user(store, " ", "owner", "long enough")


def test_many_wrong_passwords_shut_the_name_for_a_while(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    users.add_user(store, "Ann", "annotator", "correct horse")
    users.add_user(store, "Bob", "annotator", "correct horse")
    monkeypatch.setattr(auth, "check_password", lambda _store, _name, password: password == "right" or None)
    gate = auth.LoginGate()
    for _ in range(auth.TRIES - 1):
        assert gate.check(store, "Ann", "wrong") is None
    assert gate.check(store, "Ann", "right")  # which also forgets the failures
    for _ in range(auth.TRIES):
        assert gate.check(store, "ann ", "wrong") is None
    with pytest.raises(InputError, match="Wait 15 minutes"):
        gate.check(store, "Ann", "right")
    assert gate.check(store, "Bob", "right")


def test_a_handler_without_a_session_is_told_to_log_in(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path, "model", seed_file=None)
    assert auth.current_user(None, workspace).role == "owner"
    users.add_user(workspace.store, "Ann", "annotator", "correct horse")
    with pytest.raises(InputError, match="not logged in"):
        auth.current_user(None, workspace)


def test_the_command_line_makes_users_moves_data_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--workspace", str(tmp_path / "w")]
    assert main([*at, "user", "add", "ann", "--role", "lead", "--generate"]) == 0
    password = capsys.readouterr().out.split()[-1]
    store = Store(tmp_path / "w" / "preferences.sqlite")
    found = users.check_password(store, "ann", password)
    assert found is not None
    assert (found.name, found.role) == ("ann", "lead")
    assert main([*at, "user", "list"]) == 0
    assert "ann\tlead\tcan log in" in capsys.readouterr().out

    rows_file = tmp_path / "rows.jsonl"
    rows_file.write_text('{"prompt": "One?", "chosen": "yes", "rejected": "no"}\n', encoding="utf-8")
    assert main([*at, "import", str(rows_file)]) == 0
    assert "1 rankings" in capsys.readouterr().out
    assert main([*at, "export", str(tmp_path / "out.jsonl")]) == 0
    assert "1 rows, sha256" in capsys.readouterr().out
    assert main([*at, "backup", str(tmp_path / "copy.sqlite")]) == 0
    assert scalar(Store(tmp_path / "copy.sqlite").db, "SELECT count(*) FROM latest_rankings") == 1
    assert len(rows(store.db, "SELECT 1 FROM users")) == 2  # ann and the owner, in whose name the import was made

    capsys.readouterr()
    assert main([*at, "import", str(tmp_path / "missing.jsonl")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "no such file" in error
    assert error.count("\n") == 1
