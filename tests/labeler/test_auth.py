"""Passwords, sessions, and who a request belongs to."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from data.records import InputError
from labeler import auth, invitations, users
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
    assert main([*at, "user", "add", "ann", "--role", "lead", "--generate"]) == 1  # would lock the owner out
    assert "user add owner --role owner" in capsys.readouterr().err
    assert main([*at, "user", "add", "owner", "--role", "owner", "--generate"]) == 0
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


OWNER_PASSWORD = "horse battery"


@pytest.fixture
def owner(store: Store) -> users.User:
    """The local owner, with a password, as the Team tab makes it before the first invitation."""
    user = users.local_owner(store)
    users.set_own_password(store, user, OWNER_PASSWORD)
    return user


def test_the_first_invitation_waits_until_the_owner_has_a_password(store: Store) -> None:
    owner = users.local_owner(store)
    with pytest.raises(InputError, match="choose a password for yourself first"):
        invitations.invite(store, owner, "annotator")
    with pytest.raises(InputError, match="too short"):
        users.set_own_password(store, owner, "short")
    assert not users.needs_login(store)
    users.set_own_password(store, owner, OWNER_PASSWORD)
    assert users.check_password(store, "owner", OWNER_PASSWORD) == owner
    assert invitations.invite(store, owner, "annotator")


def test_an_invitation_makes_one_account_once(store: Store, owner: users.User) -> None:
    token = invitations.invite(store, owner, "annotator")
    assert invitations.find(store.db, token).role == "annotator"
    for name, password, message in (
        ("OWNER", "long enough", "is taken"),
        (" ", "long enough", "name needs"),
        ("ann", "short", "too short"),
    ):
        with pytest.raises(InputError, match=message):
            invitations.accept(store, token, name, password)
    assert len(invitations.pending(store.db)) == 1  # a mistake does not use it up
    ann = invitations.accept(store, token, " ann ", "long enough")
    assert (ann.name, ann.role) == ("ann", "annotator")
    assert users.check_password(store, "ann", "long enough") == ann
    assert users.check_password(store, "owner", OWNER_PASSWORD) == owner
    for other in (token, "guess", ""):
        with pytest.raises(InputError, match="ask for a new one"):
            invitations.accept(store, other, "bob", "long enough")
    assert invitations.pending(store.db) == []


def test_a_used_link_is_used_also_for_two_at_once(store: Store, owner: users.User) -> None:
    token = invitations.invite(store, owner, "annotator")
    results: list[str] = []

    def use(name: str) -> None:
        try:
            results.append(invitations.accept(store, token, name, "long enough").name)
        except InputError as error:
            results.append(str(error))

    threads = [threading.Thread(target=use, args=(name,)) for name in ("ann", "bob", "cyd")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("ask for a new one" in result for result in results) == 2
    assert len(users.list_users(store)) == 2


def test_a_link_expires_and_can_be_withdrawn_and_is_not_in_the_file(store: Store, owner: users.User) -> None:
    token = invitations.invite(store, owner, "lead")
    store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert token.encode() not in store.path.read_bytes()
    with store.write() as db:
        db.execute("UPDATE invitations SET expires_at = ?", [time.time() - 1])
    with pytest.raises(InputError, match="expired"):
        invitations.find(store.db, token)
    token = invitations.invite(store, owner, "researcher")
    (row,) = invitations.pending(store.db)
    with pytest.raises(InputError, match="not yours"):
        invitations.withdraw(store, users.User(owner.id, "lea", "lead"), row["id"])
    invitations.withdraw(store, owner, row["id"])
    with pytest.raises(InputError, match="withdrawn"):
        invitations.find(store.db, token)


def test_a_new_password_by_link_ends_sessions_and_other_links(store: Store, owner: users.User) -> None:
    ann = users.add_user(store, "ann", "annotator", "correct horse")
    session = auth.start_session(store, ann)
    first, second = (invitations.invite_again(store, owner, ann.id) for _ in range(2))
    assert invitations.find(store.db, first).name == "ann"
    assert invitations.accept(store, first, "somebody else", "another horse") == ann  # the name is not theirs to choose
    assert users.check_password(store, "ann", "another horse") == ann
    assert users.check_password(store, "ann", "correct horse") is None
    assert auth.user_of(store, {auth.COOKIE: session}) is None
    with pytest.raises(InputError):
        invitations.accept(store, second, "ann", "third horse")
    with store.write() as db:
        imported = users.ensure_user(db, "imported")
    token = invitations.invite_again(store, owner, imported.id)  # they get the account with their old rankings
    assert invitations.accept(store, token, "", "fourth horse") == imported


def test_who_may_do_what_with_people(store: Store, owner: users.User) -> None:
    people = {role: users.add_user(store, role[:3], role, "correct horse") for role in users.ROLES}
    second = people["owner"]
    for role in users.ROLES:
        for by in people.values():
            allowed = by.role == "owner" or (by.role == "lead" and role in ("annotator", "lead"))
            if allowed:
                assert invitations.invite(store, by, role)
                assert invitations.invite_again(store, by, people[role].id)
            else:
                for act in (
                    lambda by=by, role=role: invitations.invite(store, by, role),
                    lambda by=by, role=role: invitations.invite_again(store, by, people[role].id),
                    lambda by=by, role=role: users.disable(store, by, people[role].id),
                    lambda by=by, role=role: users.set_role(store, by, people[role].id, "annotator"),
                    lambda by=by, role=role: users.set_role(store, by, people["annotator"].id, role),
                ):
                    with pytest.raises(InputError, match=r"may not|ask an owner"):
                        act()
    users.disable(store, owner, second.id)
    with pytest.raises(InputError, match="cannot disable yourself"):
        users.disable(store, owner, owner.id)
    with pytest.raises(InputError, match="only owner"):
        users.set_role(store, owner, owner.id, "lead")
    users.enable(store, owner, second.id)
    users.set_role(store, owner, owner.id, "lead")
    with pytest.raises(InputError, match="unknown role"):
        users.set_role(store, second, owner.id, "king")


def test_who_is_disabled_or_has_another_role_keeps_no_links(store: Store, owner: users.User) -> None:
    lea = users.add_user(store, "lea", "lead", "correct horse")
    ann = users.add_user(store, "ann", "annotator", "correct horse")
    made, account = invitations.invite(store, lea, "annotator"), invitations.invite_again(store, lea, ann.id)
    users.set_role(store, owner, ann.id, "owner")  # the lead's link must not open an owner's account
    with pytest.raises(InputError):
        invitations.accept(store, account, "", "taken over")
    session = auth.start_session(store, lea)
    users.disable(store, owner, lea.id)
    assert auth.user_of(store, {auth.COOKIE: session}) is None
    assert users.check_password(store, "lea", "correct horse") is None
    with pytest.raises(InputError):
        invitations.accept(store, made, "new", "long enough")
