"""Personal API tokens: keys that a person makes for their own programs. A token may do what the person may do."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass

from data.records import InputError
from labeler.store import Store, one, rows, scalar
from labeler.users import User

PREFIX = "pl_"
"""How every token begins, so that one that leaked into a file is recognised."""

MAX_TOKENS = 50
USE_NOTED_SECONDS = 60.0


@dataclass(frozen=True)
class Token:
    """What is known of a token; its secret is not. Times are unix seconds, None: never."""

    id: int
    name: str
    created_at: float
    expires_at: float | None
    last_used_at: float | None
    revoked_at: float | None


@dataclass(frozen=True)
class Bearer:
    """Who showed a token. `note_use` asks for a call of `note_use`: the last one noted is older than a minute."""

    user: User
    token_id: int
    note_use: bool


def create_token(store: Store, user: User, name: str, days: float | None = None) -> tuple[str, Token]:
    """A new token that ends after `days` (None: never): its secret, shown this once, and what is kept of it."""
    name = name.strip()
    if not 1 <= len(name) <= 100 or "\0" in name:
        raise InputError("a token's name needs 1 to 100 characters; name the program that will use it")
    if days is not None and not 0 < days <= 3650:
        raise InputError("a token lasts more than 0 and at most 3650 days; leave days out for one that never ends")
    secret, now = PREFIX + secrets.token_urlsafe(32), time.time()
    with store.write() as db:
        sql = "SELECT count(*) FROM tokens WHERE user_id = ? AND revoked_at IS NULL"
        if scalar(db, sql, [user.id]) >= MAX_TOKENS:
            raise InputError(f"{user.name} has {MAX_TOKENS} tokens already; revoke one that is not needed any more")
        cursor = db.execute(
            "INSERT INTO tokens (user_id, name, token_hash, created_at, expires_at) VALUES (?, ?, ?, ?, ?)",
            [user.id, name, _hash(secret), now, None if days is None else now + days * 86400],
        )
        token_id = int(cursor.lastrowid or 0)
    return secret, next(token for token in list_tokens(store, user) if token.id == token_id)


def list_tokens(store: Store, user: User) -> list[Token]:
    """This person's tokens, revoked ones included, the newest first."""
    names = ", ".join(Token.__annotations__)
    sql = f"SELECT {names} FROM tokens WHERE user_id = ? ORDER BY id DESC"
    return [Token(**row) for row in rows(store.db, sql, [user.id])]


def revoke_token(store: Store, user: User, token_id: int) -> None:
    """From now on the token opens nothing. Raises InputError where this person has no such token."""
    with store.write() as db:
        if one(db, "SELECT 1 FROM tokens WHERE id = ? AND user_id = ?", [token_id, user.id]) is None:
            raise InputError(f"there is no token {token_id} of yours")
        sql = "UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL"
        db.execute(sql, [time.time(), token_id])


def bearer(store: Store, secret: str) -> Bearer | None:
    """Who shows this secret; None where it is unknown, revoked, expired, or its owner was disabled.

    One indexed read (0.05 ms), so nothing is cached and a revoked token is refused from the next request on.
    """
    now = time.time()
    row = one(
        store.db,
        """SELECT t.id AS token_id, t.last_used_at, u.id, u.name, u.role
           FROM tokens AS t JOIN users AS u ON u.id = t.user_id
           WHERE t.token_hash = ? AND t.revoked_at IS NULL AND u.disabled_at IS NULL
               AND (t.expires_at IS NULL OR t.expires_at > ?)""",
        [_hash(secret), now],
    )
    if row is None:
        return None
    due = row["last_used_at"] is None or row["last_used_at"] < now - USE_NOTED_SECONDS
    return Bearer(User(row["id"], row["name"], row["role"]), row["token_id"], due)


def note_use(store: Store, token_id: int) -> None:
    """Keep the time: once a minute is enough, since every write waits for the disk."""
    now = time.time()
    with store.write() as db:
        sql = "UPDATE tokens SET last_used_at = ? WHERE id = ? AND coalesce(last_used_at, 0) < ?"
        db.execute(sql, [now, token_id, now - USE_NOTED_SECONDS])


def _hash(secret: str) -> str:
    """SHA-256 is enough: a token is 256 random bits, not a word that could be guessed."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
