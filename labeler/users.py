"""Who works here: people, their roles and their passwords."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from sqlite_utils import Database

from data.records import InputError
from labeler.store import Store, one, rows, scalar

ROLES = ("annotator", "lead", "researcher", "owner")
LOCAL_OWNER = "owner"
# 16 MiB and some 50 ms a try: dear to guess, cheap to log in
SCRYPT = {"n": 2**14, "r": 8, "p": 1}


@dataclass(frozen=True)
class User:
    """Somebody who may work here."""

    id: int
    name: str
    role: str


def local_owner(store: Store) -> User:
    """The one who works on this machine without a login; made at the first start."""
    row = one(store.db, "SELECT id, name, role FROM users WHERE name = ?", [LOCAL_OWNER])
    if row is None:
        with store.write() as db:
            db.execute("INSERT INTO users (name, role) VALUES (?, 'owner') ON CONFLICT DO NOTHING", [LOCAL_OWNER])
            row = one(db, "SELECT id, name, role FROM users WHERE name = ?", [LOCAL_OWNER])
    assert row is not None
    return User(**row)


def ensure_user(db: Database, name: str, role: str = "annotator") -> User:
    """The user of that name, made without a password where there is none (imports, simulated annotators)."""
    _check(name, role)
    db.execute("INSERT INTO users (name, role) VALUES (?, ?) ON CONFLICT DO NOTHING", [name.strip(), role])
    row = one(db, "SELECT id, name, role FROM users WHERE name = ?", [name.strip()])
    assert row is not None
    return User(**row)


def add_user(store: Store, name: str, role: str, password: str) -> User:
    """Make a user who can log in, or give an existing one a new role and password (which ends their sessions)."""
    _check(name, role)
    if len(password) < 8:
        raise InputError("the password is too short; use at least 8 characters")
    with store.write() as db:
        user = ensure_user(db, name, role)
        db.execute(
            "UPDATE users SET role = ?, password_hash = ?, disabled_at = NULL WHERE id = ?",
            [role, hash_password(password), user.id],
        )
        db.execute("DELETE FROM sessions WHERE user_id = ?", [user.id])
    return User(user.id, user.name, role)


def list_users(store: Store) -> list[dict]:
    """Every user: id, name, role, can_log_in, rankings (in force)."""
    return rows(
        store.db,
        """SELECT u.id, u.name, u.role, u.password_hash IS NOT NULL AND u.disabled_at IS NULL AS can_log_in,
               (SELECT count(*) FROM latest_rankings AS r WHERE r.user_id = u.id) AS rankings
           FROM users AS u ORDER BY u.id""",
    )


def needs_login(store: Store) -> bool:
    """True once anybody has a password: from then on nobody gets in without one."""
    sql = "SELECT count(*) FROM users WHERE password_hash IS NOT NULL AND disabled_at IS NULL"
    return bool(scalar(store.db, sql))


def check_password(store: Store, name: str, password: str) -> User | None:
    """The user, or None where name or password is wrong. Takes as long for an unknown name as for a known one."""
    row = one(
        store.db,
        "SELECT id, name, role, password_hash FROM users WHERE name = ? AND disabled_at IS NULL",
        [name.strip()],
    )
    stored = row["password_hash"] if row and row["password_hash"] else _NOBODY
    matches = verify_password(password, stored)
    return User(row["id"], row["name"], row["role"]) if row and row["password_hash"] and matches else None


def hash_password(password: str) -> str:
    """`scrypt$n$r$p$salt$hash`, salt and hash in base64."""
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, dklen=32, **SCRYPT)
    numbers = "$".join(str(SCRYPT[key]) for key in ("n", "r", "p"))
    return f"scrypt${numbers}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def verify_password(password: str, stored: str) -> bool:
    """Whether `stored` (see hash_password) was made from this password."""
    _, n, r, p, salt, digest = stored.split("$")
    expected = base64.b64decode(digest)
    found = hashlib.scrypt(
        password.encode(), salt=base64.b64decode(salt), dklen=len(expected), n=int(n), r=int(r), p=int(p)
    )
    return hmac.compare_digest(found, expected)


def _check(name: str, role: str) -> None:
    if not name.strip() or len(name) > 100:
        raise InputError("a user's name needs 1 to 100 characters")
    if role not in ROLES:
        raise InputError(f"unknown role {role!r}; use one of {', '.join(ROLES)}")


_NOBODY = hash_password(secrets.token_hex())
