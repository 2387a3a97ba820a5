"""How the database is opened, written to, and what is said when that fails."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from data.records import InputError
from labeler import migrations

BUSY_TIMEOUT_SECONDS = 30.0
CHECKPOINT_PAGES = 10_000  # of 4 KiB, some 4 s of 100 labels/s; SQLite's 1,000 had everybody wait five times as often

WRITER_CACHE_KIB = 64 * 1024  # at most; an import finds by hash what is there, which is spread over the whole index

Params = Sequence[Any] | dict[str, Any]
Row = dict[str, Any]


class Log:
    """The write-ahead log of a database, brought to the disk for all who wait for it at once (a group commit).

    SQLite would sync it inside every commit, while the next writer waits. A disk is slow at times (5 ms and more, where
    others use it too), and two hundred such commits a second then no longer fit into a second.
    """

    def __init__(self, database: Path) -> None:
        self.path = Path(f"{database}-wal")
        self._turn = threading.Lock()
        self._begun = 0
        self._failed: str | None = None

    def sync(self) -> None:
        """Return once all that was committed before the call is on the disk.

        Raises sqlite3.OperationalError where the disk refuses, and from then on always: the kernel reports a failed
        write once, so that a later success would prove nothing.
        """
        begun = self._begun
        with self._turn:
            if self._failed is None and self._begun == begun:  # else one that began after the call has ended
                self._begun += 1
                try:
                    descriptor = os.open(self.path, os.O_RDWR)
                    try:
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
                except OSError as error:
                    self._failed = f"disk I/O error: {error}"
            if self._failed is not None:
                raise sqlite3.OperationalError(self._failed)


class Store:
    """One SQLite file. Every thread that reads gets a connection of its own; all write over one, in turn.

    What was written is on the disk when `write` ends.

    `busy_timeout` is in seconds: how long a writer waits for another one before it gives up.
    Raises InputError where the file cannot be opened, is no database, or comes from a newer version.
    """

    def __init__(self, path: Path | str, busy_timeout: float = BUSY_TIMEOUT_SECONDS) -> None:
        self.path = Path(path)
        self.busy_timeout = busy_timeout
        self._local = threading.local()
        self._turn = threading.Lock()
        self._writer: Database | None = None
        self._log = Log(self.path)
        try:
            with self.write() as db:
                migrations.apply(db)
        except sqlite3.Error as error:
            raise InputError(f"{self.path}: {explain(error)}") from None

    @property
    def db(self) -> Database:
        """This thread's connection, inside `write` the one that writes. Read with `rows` and `one`."""
        writing: Database | None = getattr(self._local, "writing", None)
        if writing is not None:
            return writing
        database: Database | None = getattr(self._local, "database", None)
        if database is None:
            database = self._local.database = self._connect()
        return database

    def _connect(self) -> Database:
        # check_same_thread: a connection is used by the thread that made it, the one that writes by one at a time
        connection = sqlite3.connect(self.path, timeout=self.busy_timeout, check_same_thread=False)
        try:
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA journal_mode=WAL")
            # FULL: NORMAL may lose an acknowledged label when the power fails
            connection.execute("PRAGMA synchronous=FULL")
        except sqlite3.Error:
            connection.close()
            raise
        return Database(connection, execute_plugins=False)

    @contextmanager
    def write(self) -> Iterator[Database]:
        """One transaction: all of it or nothing, on the disk when it ends. Inside another one it is a part of that one.

        Only what it yields, or `db` asked for inside, is in it: a connection from before would wait for it in vain.

        BEGIN IMMEDIATE, because a deferred transaction that reads before it writes fails at once when another
        writer came between, instead of waiting its turn.
        """
        if self.db.conn.in_transaction:
            with self.db.atomic():
                yield self.db
            return
        # The threads of this program queue here, where the next one wakes at once. SQLite itself would have each of
        # them sleep and try again, up to 100 ms at a time and in no order: with fifty annotators that is the longest
        # wait of all.
        if not self._turn.acquire(timeout=self.busy_timeout):
            raise sqlite3.OperationalError("database is locked")
        try:
            # One connection for all: what another one has written empties a connection's cache of pages.
            if self._writer is None:
                self._writer = self._connect()
                # What it commits is synced by the log, outside of the turn. It is safe from a crash of this program
                # at once, and the database whole after any.
                self._writer.execute("PRAGMA synchronous=NORMAL")
                self._writer.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
                self._writer.execute(f"PRAGMA cache_size=-{WRITER_CACHE_KIB}")
            db = self._local.writing = self._writer
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.commit()
            except BaseException:
                db.rollback()
                raise
        finally:
            self._local.writing = None
            self._turn.release()
        self._log.sync()

    def close(self) -> None:
        """Close this thread's connection, and the one that writes if nobody does now; the next use opens a new one."""
        if self._turn.acquire(blocking=False):
            try:
                if self._writer is not None:
                    self._writer.close()
                    self._writer = None
            finally:
                self._turn.release()
        database: Database | None = getattr(self._local, "database", None)
        if database is not None:
            self._local.database = None
            database.close()

    def backup(self, target: Path) -> None:
        """Copy the whole database, consistent even while others write, to a file that does not exist yet."""
        if target.exists():
            raise InputError(f"{target}: exists already; name a new file")
        try:
            with sqlite3.connect(target) as copy:
                self.db.conn.backup(copy)
            copy.close()
        except sqlite3.Error as error:
            raise InputError(f"{target}: {explain(error)}") from None


def rows(db: Database, sql: str, params: Params = ()) -> list[Row]:
    """All rows of a query. A list, since a half-read cursor would keep its read transaction open.

    Not by `db.query`: to be ready for statements that are no queries it sets a savepoint around each, which makes
    three statements of one.
    """
    cursor = db.conn.execute(sql, params)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def one(db: Database, sql: str, params: Params = ()) -> Row | None:
    """The first row of a query, or None."""
    found = rows(db, sql, params)
    return found[0] if found else None


def scalar(db: Database, sql: str, params: Params = ()) -> Any:
    """The first column of the first row, or None."""
    row = db.execute(sql, params).fetchone()
    return row[0] if row else None


def explain(error: BaseException) -> str:
    """What a database error means to the person who met it, and what to do."""
    text = str(error)
    if "locked" in text or "busy" in text:
        return "another program is holding the database; close it and try again"
    if "disk is full" in text or "disk I/O" in text:
        return "the disk is full or failing; free some space, and start again if that alone does not help"
    if "readonly" in text or "unable to open" in text:
        return "cannot be written; check the folder's permissions or choose another WORKSPACE"
    if "not a database" in text or "malformed" in text:
        return "is not a usable SQLite database; restore a backup or choose another WORKSPACE"
    return f"the database refused: {text}"
