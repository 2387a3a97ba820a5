"""Who works here: people, their roles and their passwords. How they get in: invitations.py, auth.py."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

from sqlite_utils import Database

from data.records import InputError
from labeler.store import Store, one, rows, scalar

ROLES = ("annotator", "lead", "researcher", "owner")
LOCAL_OWNER = "owner"
MANAGES = {"owner": ROLES, "lead": ("annotator", "lead")}
"""Which roles a role may give, and whose people it may disable or let in again. Only owners make owners."""
MIN_PASSWORD = 8
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
    check_new_password(password)
    with store.write() as db:
        user = ensure_user(db, name, role)
        db.execute(
            "UPDATE users SET role = ?, password_hash = ?, disabled_at = NULL WHERE id = ?",
            [role, hash_password(password), user.id],
        )
        db.execute("DELETE FROM sessions WHERE user_id = ?", [user.id])
    return User(user.id, user.name, role)


def set_own_password(store: Store, user: User, password: str) -> None:
    """Give oneself a (new) password, which ends one's sessions."""
    check_new_password(password)
    with store.write() as db:
        write_password(db, user.id, hash_password(password))


def write_password(db: Database, user_id: int, password_hash: str) -> None:
    """Store it, end the person's sessions, and void the links that could set another one."""
    db.execute("UPDATE users SET password_hash = ? WHERE id = ?", [password_hash, user_id])
    db.execute("DELETE FROM sessions WHERE user_id = ?", [user_id])
    db.execute("DELETE FROM invitations WHERE user_id = ? AND used_at IS NULL", [user_id])


def set_role(store: Store, by: User, user_id: int, role: str) -> None:
    """Give somebody another role. Raises InputError where `by` may not, or no owner would be left."""
    with store.write() as db:
        user = check_manages(db, by, user_id)
        check_gives(by, role)
        if role != "owner":
            _check_not_last_owner(db, user)
        db.execute("UPDATE users SET role = ? WHERE id = ?", [role, user.id])
        _void_links(db, user.id)


def disable(store: Store, by: User, user_id: int) -> None:
    """Shut somebody out, at once; what they said stays.

    Raises InputError where `by` may not, or for the last owner.
    """
    with store.write() as db:
        user = check_manages(db, by, user_id)
        if user.id == by.id:
            raise InputError("you cannot disable yourself; ask another owner")
        _check_not_last_owner(db, user)
        db.execute("UPDATE users SET disabled_at = ? WHERE id = ?", [time.time(), user.id])
        db.execute("DELETE FROM sessions WHERE user_id = ?", [user.id])
        _void_links(db, user.id)


def enable(store: Store, by: User, user_id: int) -> None:
    """Let somebody who was disabled log in again."""
    with store.write() as db:
        db.execute("UPDATE users SET disabled_at = NULL WHERE id = ?", [check_manages(db, by, user_id).id])


def check_gives(by: User, role: str) -> None:
    """Raises InputError where `by` may not give this role."""
    if role not in ROLES:
        raise InputError(f"unknown role {role!r}; use one of {', '.join(ROLES)}")
    if role not in MANAGES.get(by.role, ()):
        raise InputError(f"{by.name} may not make somebody {role}; ask an owner")


def check_manages(db: Database, by: User, user_id: int) -> User:
    """The person, if `by` may change them. Raises InputError otherwise."""
    row = one(db, "SELECT id, name, role FROM users WHERE id = ?", [user_id])
    if by.role not in MANAGES:
        raise InputError(f"{by.name} may not manage people; ask a lead or an owner")
    if row is None:
        raise InputError(f"there is no user {user_id}")
    if row["role"] not in MANAGES[by.role]:
        raise InputError(f"{by.name} may not change {row['name']} ({row['role']}); ask an owner")
    return User(**row)


def check_new_password(password: str) -> None:
    """Raises InputError where it is too short or too long."""
    if len(password) < MIN_PASSWORD:
        raise InputError(f"the password is too short; use at least {MIN_PASSWORD} characters")
    if len(password) > 1000:
        raise InputError("the password is too long; use at most 1000 characters")


def _check_not_last_owner(db: Database, user: User) -> None:
    sql = "SELECT 1 FROM users WHERE role = 'owner' AND password_hash IS NOT NULL AND disabled_at IS NULL AND id != ?"
    if user.role == "owner" and one(db, sql, [user.id]) is None:
        raise InputError(f"{user.name} is the only owner who can log in; make somebody else owner first")


def _void_links(db: Database, user_id: int) -> None:
    """Unused links of somebody, and to their account: they were made under another role."""
    db.execute("DELETE FROM invitations WHERE used_at IS NULL AND ? IN (user_id, created_by)", [user_id])


def list_users(store: Store) -> list[dict]:
    """Every user: id, name, role, can_log_in, disabled, rankings (in force)."""
    return rows(
        store.db,
        """SELECT u.id, u.name, u.role, u.password_hash IS NOT NULL AND u.disabled_at IS NULL AS can_log_in,
               u.disabled_at IS NOT NULL AS disabled,
               (SELECT count(*) FROM assignments AS a WHERE a.user_id = u.id AND a.state = 'submitted') AS rankings
           FROM users AS u ORDER BY u.id""",
    )


def needs_login(store: Store) -> bool:
    """True once anybody has a password: from then on nobody gets in without one."""
    sql = "SELECT 1 FROM users WHERE password_hash IS NOT NULL AND disabled_at IS NULL LIMIT 1"
    return scalar(store.db, sql) is not None


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


def check_name(name: str) -> None:
    """Raises InputError where nobody can be called that."""
    if not name.strip() or len(name) > 100:
        raise InputError("a user's name needs 1 to 100 characters")


def _check(name: str, role: str) -> None:
    check_name(name)
    if role not in ROLES:
        raise InputError(f"unknown role {role!r}; use one of {', '.join(ROLES)}")


_NOBODY = hash_password(secrets.token_hex())
