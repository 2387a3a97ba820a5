"""Tokens: what is stored, who they belong to, when they stop, and the command that makes them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from data.records import InputError
from labeler import tokens
from labeler.__main__ import main
from labeler.store import Store, scalar
from labeler.users import User, ensure_user


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "a.sqlite")


@pytest.fixture
def ann(store: Store) -> User:
    with store.write() as db:
        return ensure_user(db, "ann")


def test_a_token_is_its_owners_and_not_in_the_file(store: Store, ann: User) -> None:
    secret, token = tokens.create_token(store, ann, " laptop ")
    assert (token.name, token.expires_at, token.revoked_at) == ("laptop", None, None)
    found = tokens.bearer(store, secret)
    assert found is not None
    assert found.user == ann
    assert tokens.bearer(store, secret[:-1]) is None
    assert tokens.bearer(store, "\ud800") is None
    store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = store.path.read_bytes()
    assert b"laptop" in content
    assert secret.encode() not in content


def test_a_token_stops_when_revoked_expired_or_its_owner_disabled(store: Store, ann: User) -> None:
    for statement in (
        None,
        f"UPDATE tokens SET expires_at = {time.time() - 1}",
        "UPDATE users SET disabled_at = 1",
    ):
        secret, token = tokens.create_token(store, ann, "laptop", days=1)
        assert tokens.bearer(store, secret) is not None
        if statement is None:
            tokens.revoke_token(store, ann, token.id)
        else:
            with store.write() as db:
                db.execute(statement)
        assert tokens.bearer(store, secret) is None


def test_the_last_use_is_noted_once_a_minute(store: Store, ann: User) -> None:
    secret, token = tokens.create_token(store, ann, "laptop")
    found = tokens.bearer(store, secret)
    assert found is not None
    assert found.note_use
    tokens.note_use(store, token.id)
    first = tokens.list_tokens(store, ann)[0].last_used_at
    assert first is not None
    again = tokens.bearer(store, secret)
    assert again is not None
    assert not again.note_use
    tokens.note_use(store, token.id)
    assert tokens.list_tokens(store, ann)[0].last_used_at == first


def test_nobody_revokes_anothers_token(store: Store, ann: User) -> None:
    _, token = tokens.create_token(store, ann, "laptop")
    with store.write() as db:
        bob = ensure_user(db, "bob")
    with pytest.raises(InputError, match="no token"):
        tokens.revoke_token(store, bob, token.id)
    assert tokens.list_tokens(store, bob) == []


@pytest.mark.parametrize(("name", "days"), [("", None), ("x" * 101, None), ("a\0b", None), ("a", 0.0), ("a", 1e9)])
def test_what_is_no_token(store: Store, ann: User, name: str, days: float | None) -> None:
    with pytest.raises(InputError):
        tokens.create_token(store, ann, name, days)


def test_there_is_an_end_to_tokens(store: Store, ann: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_TOKENS", 2)
    _, first = tokens.create_token(store, ann, "1")
    tokens.create_token(store, ann, "2")
    with pytest.raises(InputError, match="revoke one"):
        tokens.create_token(store, ann, "3")
    tokens.revoke_token(store, ann, first.id)
    tokens.create_token(store, ann, "3")


def test_the_command_makes_lists_and_revokes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--workspace", str(tmp_path / "w")]
    for name, role in (("owner", "owner"), ("ann", "annotator")):
        assert main([*at, "user", "add", name, "--role", role, "--generate"]) == 0
    capsys.readouterr()
    assert main([*at, "token", "create", "--user", "Ann", "--name", "laptop"]) == 0
    secret = capsys.readouterr().out.strip()
    store = Store(tmp_path / "w" / "preferences.sqlite")
    assert tokens.bearer(store, secret) is not None
    assert main([*at, "token", "list", "--user", "ann"]) == 0
    assert capsys.readouterr().out == "1\tlaptop\tin force\n"
    assert main([*at, "token", "revoke", "--user", "ann", "1"]) == 0
    assert tokens.bearer(store, secret) is None
    assert main([*at, "token", "create", "--user", "nobody", "--name", "x"]) == 1
    assert "user add" in capsys.readouterr().err
    assert scalar(store.db, "SELECT count(*) FROM tokens") == 1
