"""Who is asking: sessions kept in the database, so that they survive a restart.

While nobody has a password, this machine's owner works without a login (web.py answers only loopback names then).
Once somebody has one, every request needs a session.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Mapping

import gradio as gr

from data.records import InputError
from labeler.store import Store, one
from labeler.users import User, check_password, local_owner, needs_login
from labeler.workspace import Workspace

COOKIE = "preference_loop_session"
SESSION_SECONDS = 14 * 24 * 3600.0
TRIES, TRIES_SECONDS = 10, 15 * 60.0


def current_user(request: gr.Request | None, workspace: Workspace) -> User:
    """The user of a Gradio handler. Every handler that reads or writes for somebody asks this first.

    Raises InputError where a login is needed and there is none.
    """
    cookies: Mapping[str, str] = request.cookies if request is not None else {}
    user = user_of(workspace.store, cookies)
    if user is None:
        raise InputError("You are not logged in any more. Reload the page and log in.")
    return user


def user_of(store: Store, cookies: Mapping[str, str]) -> User | None:
    """The user these cookies belong to; the local owner where no login is needed; else None."""
    if not needs_login(store):
        return local_owner(store)
    token = cookies.get(COOKIE)
    if not token:
        return None
    row = one(
        store.db,
        """SELECT u.id, u.name, u.role FROM sessions AS s JOIN users AS u ON u.id = s.user_id
           WHERE s.token_hash = ? AND s.expires_at > ? AND u.disabled_at IS NULL AND u.password_hash IS NOT NULL""",
        [_hash(token), time.time()],
    )
    return User(**row) if row else None


def start_session(store: Store, user: User) -> str:
    """A new session's token. Only its hash is stored: who reads the database cannot log in with it."""
    token, now = secrets.token_urlsafe(32), time.time()
    with store.write() as db:
        db.execute("DELETE FROM sessions WHERE expires_at <= ?", [now])
        db.execute(
            "INSERT INTO sessions (token_hash, user_id, created_at, expires_at) VALUES (?, ?, ?, ?)",
            [_hash(token), user.id, now, now + SESSION_SECONDS],
        )
    return token


def end_session(store: Store, token: str) -> None:
    """Log out: the token is worthless from now on."""
    with store.write() as db:
        db.execute("DELETE FROM sessions WHERE token_hash = ?", [_hash(token)])


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class LoginGate:
    """Checks passwords, and slows down who tries many: after TRIES failures for a name it waits TRIES_SECONDS."""

    def __init__(self) -> None:
        self._failures: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def check(self, store: Store, name: str, password: str) -> User | None:
        """The user, or None. Raises InputError while the name is shut."""
        key, now = name.strip().lower()[:100], time.monotonic()
        with self._lock:
            recent = [moment for moment in self._failures.get(key, []) if now - moment < TRIES_SECONDS]
            if len(recent) >= TRIES:
                raise InputError("Too many wrong passwords for this name. Wait 15 minutes and try again.")
            # counted before it is checked, so that many tries at once do not slip past; taken back on success
            self._failures[key] = [*recent, now]
            if len(self._failures) > 10_000:
                self._failures = {key: self._failures[key]}
        user = check_password(store, name, password)
        if user is not None:
            with self._lock:
                self._failures.pop(key, None)
        return user
