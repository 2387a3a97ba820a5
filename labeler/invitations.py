"""Links that let somebody in: to a new account with a role, or to a new password of an old one.

A link holds a token that is used once and expires. Only its hash is stored: who reads the database cannot get in.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass

from sqlite_utils import Database

from data.records import InputError
from labeler.store import Row, Store, one, rows
from labeler.users import (
    MANAGES,
    User,
    check_gives,
    check_manages,
    check_name,
    check_new_password,
    hash_password,
    needs_login,
    write_password,
)

VALID_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True)
class Invitation:
    """What a link is for. `name` is that of an account whose password it sets; None: somebody new chooses theirs."""

    id: int
    role: str
    user_id: int | None
    name: str | None


def invite(store: Store, by: User, role: str) -> str:
    """The token of a link with which somebody new gets an account with this role. Raises InputError."""
    check_gives(by, role)
    return _link(store, by, role, None)


def invite_again(store: Store, by: User, user_id: int) -> str:
    """The token of a link with which this person chooses a new password. Raises InputError."""
    user = check_manages(store.db, by, user_id)
    return _link(store, by, user.role, user.id)


def _link(store: Store, by: User, role: str, user_id: int | None) -> str:
    if not needs_login(store):
        # once anybody has a password everybody needs one, and an owner without would be shut out
        raise InputError("choose a password for yourself first: once somebody can log in, everybody has to")
    token, now = secrets.token_urlsafe(32), time.time()
    with store.write() as db:
        db.execute(
            "INSERT INTO invitations (token_hash, role, user_id, created_by, created_at, expires_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [_hash(token), role, user_id, by.id, now, now + VALID_SECONDS],
        )
    return token


def find(db: Database, token: str) -> Invitation:
    """What a token is for. Raises InputError where it was used, expired, was withdrawn or never existed."""
    row = one(
        db,
        """SELECT i.id, i.role, i.user_id, u.name FROM invitations AS i LEFT JOIN users AS u ON u.id = i.user_id
           WHERE i.token_hash = ? AND i.used_at IS NULL AND i.expires_at > ? AND u.disabled_at IS NULL""",
        [_hash(token), time.time()],
    )
    if row is None:
        raise InputError("this link was used, has expired or was withdrawn; ask for a new one")
    return Invitation(**row)


def accept(store: Store, token: str, name: str, password: str) -> User:
    """Use the link: the account with its new password. Raises InputError, and the link stays good, where that fails."""
    find(store.db, token)
    check_new_password(password)
    password_hash = hash_password(password)  # takes a while: not while others wait to write
    with store.write() as db:
        invitation = find(db, token)
        user_id = invitation.user_id
        if user_id is None:
            check_name(name)
            if one(db, "SELECT 1 FROM users WHERE name = ?", [name.strip()]):
                raise InputError(f"the name {name.strip()!r} is taken; choose another one")
            cursor = db.execute("INSERT INTO users (name, role) VALUES (?, ?)", [name.strip(), invitation.role])
            user_id = int(cursor.lastrowid or 0)
        db.execute(
            "UPDATE invitations SET used_at = ?, used_by = ? WHERE id = ?", [time.time(), user_id, invitation.id]
        )
        write_password(db, user_id, password_hash)
        row = one(db, "SELECT id, name, role FROM users WHERE id = ?", [user_id])
    assert row is not None
    return User(**row)


def pending(db: Database) -> list[Row]:
    """Links that can still be used: id, role, name (of an old account, else null), invited_by, expires_at."""
    return rows(
        db,
        """SELECT i.id, i.role, u.name, b.name AS invited_by, i.expires_at FROM invitations AS i
           JOIN users AS b ON b.id = i.created_by LEFT JOIN users AS u ON u.id = i.user_id
           WHERE i.used_at IS NULL AND i.expires_at > ? ORDER BY i.id DESC""",
        [time.time()],
    )


def withdraw(store: Store, by: User, invitation_id: int) -> None:
    """Make a link worthless. Raises InputError where `by` could not have made it."""
    with store.write() as db:
        row = one(db, "SELECT role FROM invitations WHERE id = ? AND used_at IS NULL", [invitation_id])
        if row is None or row["role"] not in MANAGES.get(by.role, ()):
            raise InputError("this link was used already, or is not yours to withdraw")
        db.execute("DELETE FROM invitations WHERE id = ?", [invitation_id])


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
