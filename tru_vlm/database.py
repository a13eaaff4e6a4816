"""A SQLite file and its threads: one writes, a few read.  It knows no table; owners bring migrations and statements.

Write-ahead logging lets readers go on beside the writer; it needs memory that all who have the file open share, so a
file that several machines open has a rollback journal.  What :meth:`Database.run` has returned is on the disk, also
after ``kill -9`` or a power cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tru_vlm.errors import UnavailableError

T = TypeVar("T")

_NUM_READERS = 2
_BUSY_SECONDS = 30.0
_RETRY_SECONDS = 10.0
_RESERVE_BYTES = 1 << 20


def like_pattern(words: str) -> str:
    """A pattern for LIKE, escaped by a backslash, of the texts that have ``words``, in either case of ASCII letters."""
    return "%" + words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"


class DatabaseError(RuntimeError):
    """The file cannot be used; the text names it and says why."""


class Database:
    """One file, for one event loop; several processes may have it open.

    Args:
        path: the file; made when missing, with its folder.
        migrations: SQL scripts, each of which brings the file from the version that is its index to the next.  The
            version is SQLite's ``user_version``; a script that has been published is never edited.
        is_shared: whether processes on several machines have it open.
    """

    def __init__(self, path: Path, migrations: Sequence[str], *, is_shared: bool = False) -> None:
        self.path = path
        self._journal_mode = "DELETE" if is_shared else "WAL"
        self._migrations = tuple(migrations)
        self._reserve = path.with_name(f"{path.name}-reserve")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="tru-db-write")
        self._readers = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="tru-db-read")
        self._connections = threading.local()
        self._opened: list[sqlite3.Connection] = []

    async def start(self) -> None:
        """Open the file and bring it to the newest version.

        Raises:
            DatabaseError: if it is no SQLite file, cannot be written, or was made by a newer release.
        """
        await asyncio.get_running_loop().run_in_executor(self._writer, self._migrate)

    async def close(self) -> None:
        """Wait for what runs, and close the file."""
        await asyncio.to_thread(self._close)

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do ``work`` in one transaction that may write; it is committed when this returns, and undone when it raises.

        A caller that is cancelled does not stop a transaction that has begun: it is committed all the same.

        Raises:
            UnavailableError: if the disk is full, read-only or broken, or another process keeps the file locked.
        """
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._write, work)

    async def free(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """As :meth:`run`, for work that makes room: a full disk does not stop it, since some space is set aside for it.

        ``work`` may be called twice; the first call is undone.
        """
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._make_room, work)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do ``work``, which only reads, on one consistent state of the file, beside what writes.

        Raises:
            UnavailableError: if another process keeps the file locked.
        """
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._transaction, "DEFERRED", work)

    def _make_room(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._write(work)
        except UnavailableError as error:
            if not _is_full(error.__cause__) or not self._reserve.exists():
                raise
        # A transaction needs space before it gives any back.
        self._reserve.unlink(missing_ok=True)
        return self._transaction("IMMEDIATE", work)

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        result = self._transaction("IMMEDIATE", work)
        self._set_aside()
        return result

    def _set_aside(self) -> None:
        """Take the space that :meth:`free` may use, if there is any."""
        if self._reserve.exists():
            return
        try:
            # Random, so that no file system finds a shorter form for it.
            self._reserve.write_bytes(os.urandom(_RESERVE_BYTES))
        except OSError:
            with contextlib.suppress(OSError):
                self._reserve.unlink()

    def _transaction(self, kind: str, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection()
        try:
            connection.execute(f"BEGIN {kind}")
            try:
                result = work(connection)
                connection.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back after some errors, a full disk among them.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            reason = _TEMPORARY.get(error.sqlite_errorcode & 0xFF)
            if reason is None:
                raise
            raise UnavailableError(f"The server cannot write: {reason}.", retry_after_seconds=_RETRY_SECONDS) from error
        return result

    def _connection(self) -> sqlite3.Connection:
        """The calling thread's own connection."""
        connection: sqlite3.Connection | None = getattr(self._connections, "own", None)
        if connection is None:
            # Transactions are begun here by hand: sqlite3's own begin them late, as readers, and then cannot write.
            connection = sqlite3.connect(
                self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")
            self._connections.own = connection
            self._opened.append(connection)
        return connection

    def _migrate(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(0o600)  # its companions take its mode
            connection = self._connection()
            connection.execute(f"PRAGMA journal_mode = {self._journal_mode}")
            # Two processes that start at once: the second waits here, and finds the work done.
            connection.execute("BEGIN IMMEDIATE")
            try:
                self._bring_up_to_date(connection)
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            self._set_aside()
        except (sqlite3.Error, OSError) as error:
            raise DatabaseError(f"{self.path} cannot be used as a database: {error}.") from error

    def _bring_up_to_date(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(self._migrations):
            raise DatabaseError(
                f"{self.path} was written by a newer release (version {version}; this one knows up to "
                f"{len(self._migrations)}).  Install that release, or move the file away."
            )
        for script in self._migrations[version:]:
            for statement in _statements(script):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(self._migrations)}")

    def _close(self) -> None:
        self._readers.shutdown()
        self._writer.shutdown()
        for connection in self._opened:
            connection.close()


_TEMPORARY = {
    sqlite3.SQLITE_FULL: "its disk is full",
    sqlite3.SQLITE_READONLY: "its disk is read-only",
    sqlite3.SQLITE_IOERR: "its disk reports an error",
    sqlite3.SQLITE_BUSY: "another process holds the database",
}


def _is_full(error: BaseException | None) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL


def _statements(script: str) -> list[str]:
    """A script's statements.  ``executescript`` would commit before the first one."""
    statements: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            statements.append(pending)
            pending = ""
    return statements
