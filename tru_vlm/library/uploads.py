"""Uploads that can be resumed: bytes that come in pieces, over any number of requests, and become a kept video.

How many bytes of an upload are there is told by its file alone, ``uploads/<id>``, which is only ever appended to; so
``kill -9`` at any moment loses nothing that has reached the file.  Bytes that a client wants checked count only when
they have been: until then the row remembers where they begin, and who comes next cuts them off.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tru_vlm.database import Database
from tru_vlm.durable import to_the_end
from tru_vlm.errors import (
    ChecksumError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PayloadTooLargeError,
)
from tru_vlm.intake.spool import FLUSH_BYTES, Spool, SpooledFile, display_name, explain_disk_error, storage_full
from tru_vlm.library.store import Clock, VideoLibrary

logger = logging.getLogger(__name__)


MAX_OPEN_UPLOADS = 1000
_RETRY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload.

    Attributes:
        id: made by the server; cannot be guessed.
        owner: whose it is.
        size_bytes: how many bytes it will have.
        filename: the owner's name for it, for display.
        metadata: the client's own words about it, as they came.
        used_at: when bytes last came, seconds since 1970.
        unchecked_from: where bytes begin that have not been checked yet.
        sha256: what it has become; None while it goes on.
        offset: bytes that are there.
    """

    id: str
    owner: str
    size_bytes: int
    filename: str | None
    metadata: str | None
    used_at: float
    unchecked_from: int | None
    sha256: str | None
    offset: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are there."""
        return self.offset == self.size_bytes


@dataclass(frozen=True, slots=True)
class Checksum:
    """What the bytes of one request must hash to."""

    algorithm: str
    digest: bytes


class _Turn:
    """Who works on one upload."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.num_waiting = 0
        self.receiving: asyncio.Task[None] | None = None


class UploadStore:
    """Uploads by id.  For one event loop.

    Args:
        directory: the library's folder.
        database: the library's.
        library: whose quota uploads count against, as large as they will be.
        spool: whose threads do the disk work.
        ttl_seconds: how long an upload is kept after its last bytes.
        free_space_floor: bytes that must stay free on the disk.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        directory: Path,
        database: Database,
        library: VideoLibrary,
        spool: Spool,
        *,
        ttl_seconds: float,
        free_space_floor: int,
        clock: Clock = time.time,
    ) -> None:
        self._folder = directory / "uploads"
        self._database = database
        self._library = library
        self._spool = spool
        self._ttl_seconds = ttl_seconds
        self._free_space_floor = free_space_floor
        self._clock = clock
        self._turns: dict[str, _Turn] = {}

    async def start(self) -> None:
        """Make files and rows agree, whatever happened to the process before.

        Raises:
            OSError: the folder cannot be used.
        """
        names = await self._database.run(self._reconcile)
        await self._database.run(partial(self._unlink_unknown, names=names))
        await self.expire()

    async def create(self, *, size_bytes: int, filename: str | None, metadata: str | None, owner: str) -> Upload:
        """Begin an upload, and set its space aside.

        Raises:
            InsufficientStorageError: the quota has no room for it.
            OverloadedError: too many are under way.
            UnavailableError: the disk has no room for it.
        """
        await self._library.make_room(size_bytes)
        name = display_name(filename)
        upload = Upload(secrets.token_hex(16), owner, size_bytes, name, metadata, self._clock(), None, None)

        def create(connection: sqlite3.Connection) -> None:
            (num_open,) = connection.execute("SELECT count(*) FROM uploads WHERE sha256 IS NULL").fetchone()
            if num_open >= MAX_OPEN_UPLOADS:
                text = f"{num_open} uploads are under way, and no more are accepted; finish or delete some."
                raise OverloadedError(text, code="too_many_uploads", retry_after_seconds=_RETRY_SECONDS)
            self._library.check_room(connection, size_bytes, param="Upload-Length")
            self._check_disk(size_bytes)
            connection.execute(
                "INSERT INTO uploads (id, owner, size_bytes, filename, metadata, used_at) VALUES (?, ?, ?, ?, ?, ?)",
                (upload.id, owner, size_bytes, name, metadata, upload.used_at),
            )
            (self._folder / upload.id).touch(mode=0o600, exist_ok=False)

        await self._database.run(create)
        return upload

    async def get(self, upload_id: str, owner: str) -> Upload:
        """An upload as it is now; who sends bytes is not disturbed.

        Raises:
            NotFoundError: there is none (any more).
        """
        return await self._database.read(partial(self._find, upload_id=upload_id, owner=owner))

    async def settle(self, upload_id: str, owner: str) -> Upload:
        """An upload at rest: a request that still seems to send bytes is interrupted, since its client has come back.

        Raises:
            NotFoundError: there is none (any more).
        """
        async with self._alone(upload_id):
            return await self._at_rest(upload_id, owner)

    async def append(
        self,
        upload_id: str,
        owner: str,
        *,
        offset: int,
        chunks: AsyncIterator[bytes],
        checksum: Checksum | None = None,
    ) -> Upload:
        """Take bytes in.  What has come counts, also when the client leaves; with a checksum, all or nothing.

        Args:
            upload_id: to which upload.
            owner: whose it is.
            offset: where the client believes that the bytes begin.
            chunks: the bytes; what it raises (client gone) passes through.
            checksum: of these bytes.

        Raises:
            NotFoundError: there is no such upload (any more).
            ConflictError: the upload is elsewhere, or another request has taken over.
            PayloadTooLargeError: more bytes than the upload has.
            ChecksumError: they are not what the client sent; none counts.
            UnavailableError: the disk is full.
        """
        async with self._alone(upload_id) as turn:
            upload = await self._at_rest(upload_id, owner)
            if offset != upload.offset:
                text = f"Upload-Offset is {offset}; the upload is at {upload.offset} of {upload.size_bytes} bytes."
                raise ConflictError(text, param="Upload-Offset", code="wrong_offset")
            if upload.sha256 is not None:
                return upload
            if turn.num_waiting > 1:  # who came later knows better
                raise _taken_over()
            receiving = turn.receiving = asyncio.ensure_future(self._receive(upload, chunks, checksum))
            try:
                await asyncio.wait({receiving})
            finally:
                turn.receiving = None
                if not receiving.done():
                    receiving.cancel()
                    await asyncio.wait({receiving})
            if receiving.cancelled():
                raise _taken_over()
            receiving.result()
            return await self._at_rest(upload_id, owner)

    async def finish(self, upload_id: str, owner: str, keep: Callable[[SpooledFile], Awaitable[str]]) -> Upload:
        """Make a kept video of a complete upload.

        Args:
            upload_id: which upload.
            owner: whose it is.
            keep: keeps its file, and returns its digest.

        Raises:
            InvalidRequestError: ``keep`` refuses the file, for which there is then no use: the upload is removed.
            TruError: whatever else ``keep`` raises; it can be tried again.
        """
        async with self._alone(upload_id):
            upload = await self._at_rest(upload_id, owner)
            if not upload.is_complete or upload.sha256 is not None:
                return upload
            path = self._folder / upload_id
            digest = await to_the_end(self._spool.run(_digest, path))
            file = SpooledFile(path=path, size_bytes=upload.size_bytes, sha256=digest, filename=upload.filename)
            try:
                sha256 = await keep(file)
            except InvalidRequestError:
                await self._remove(upload_id)
                raise
            await self._update(upload_id, "sha256", sha256)
            await self._spool.run(partial(path.unlink, missing_ok=True))
            return replace(upload, sha256=sha256)

    async def remove(self, upload_id: str, owner: str) -> None:
        """End an upload and forget its bytes.

        Raises:
            NotFoundError: there is none (any more).
        """
        async with self._alone(upload_id):
            await self.get(upload_id, owner)
            await self._remove(upload_id)

    async def expire(self) -> int:
        """Remove uploads whose last bytes came too long ago; returns how many."""
        before = self._clock() - self._ttl_seconds
        query = "SELECT id FROM uploads WHERE used_at < ?"
        rows = await self._database.read(lambda connection: connection.execute(query, (before,)).fetchall())
        num_removed = 0
        for (upload_id,) in rows:
            if upload_id not in self._turns:  # who works on it is about to renew it
                async with self._alone(upload_id):
                    num_removed += await self._remove(upload_id, used_before=before)
        return num_removed

    def expires_at(self, upload: Upload) -> float:
        """When an upload to which no more bytes come may be removed, seconds since 1970."""
        return upload.used_at + self._ttl_seconds

    @contextlib.asynccontextmanager
    async def _alone(self, upload_id: str) -> AsyncIterator[_Turn]:
        """One request at a time works on an upload.  One that receives bytes makes way for the next."""
        turn = self._turns.setdefault(upload_id, _Turn())
        turn.num_waiting += 1
        if turn.receiving is not None:
            turn.receiving.cancel()
        try:
            async with turn.lock:
                yield turn
        finally:
            turn.num_waiting -= 1
            if not turn.num_waiting:
                del self._turns[upload_id]

    async def _at_rest(self, upload_id: str, owner: str) -> Upload:
        """The upload, without bytes that were to be checked when the process died."""
        upload = await self.get(upload_id, owner)
        if upload.unchecked_from is None:
            return upload
        await to_the_end(self._spool.run(os.truncate, self._folder / upload_id, upload.unchecked_from))
        await self._update(upload_id, "unchecked_from", None)
        return replace(upload, unchecked_from=None)

    async def _receive(self, upload: Upload, chunks: AsyncIterator[bytes], checksum: Checksum | None) -> None:
        writer = _Writer(self._folder / upload.id, self._check_disk)
        digest = hashlib.new(checksum.algorithm, usedforsecurity=False) if checksum else None
        if checksum is not None:
            await self._update(upload.id, "unchecked_from", upload.offset)
        try:
            async for chunk in chunks:
                if upload.offset + writer.num_bytes + len(chunk) > upload.size_bytes:
                    text = f"More bytes came than the {upload.size_bytes} of the upload."
                    raise PayloadTooLargeError(text, param="Upload-Length")
                if digest is not None:
                    digest.update(chunk)
                writer.add(chunk)
                if writer.num_pending >= FLUSH_BYTES:
                    await to_the_end(self._spool.run(writer.flush))
            if checksum is not None and digest is not None:
                if not secrets.compare_digest(digest.digest(), checksum.digest):
                    text = "The bytes do not have the checksum that was sent with them; send them again."
                    raise ChecksumError(text, param="Upload-Checksum")
                await to_the_end(self._spool.run(writer.close))
                await self._update(upload.id, "unchecked_from", None)
        finally:
            await to_the_end(self._spool.run(writer.close))
            await self._update(upload.id, "used_at", self._clock())

    async def _update(self, upload_id: str, column: str, value: object) -> None:
        statement = f"UPDATE uploads SET {column} = ? WHERE id = ?"  # noqa: S608 - our own names
        await to_the_end(self._database.run(lambda connection: connection.execute(statement, (value, upload_id))))

    async def _remove(self, upload_id: str, *, used_before: float = math.inf) -> bool:
        def remove(connection: sqlite3.Connection) -> bool:
            statement = "DELETE FROM uploads WHERE id = ? AND used_at < ?"
            return connection.execute(statement, (upload_id, used_before)).rowcount > 0

        is_removed = await to_the_end(self._database.free(remove))
        await to_the_end(self._database.run(partial(self._unlink_unknown, names=[upload_id])))
        return is_removed

    def _check_disk(self, num_bytes: int) -> None:
        if shutil.disk_usage(self._folder).free - num_bytes < self._free_space_floor:
            raise storage_full()

    # Below: in the database's threads, inside a transaction.

    def _find(self, connection: sqlite3.Connection, upload_id: str, owner: str) -> Upload:
        row = connection.execute("SELECT * FROM uploads WHERE id = ? AND owner = ?", (upload_id, owner)).fetchone()
        if row is None:
            raise _not_found()
        upload = Upload(**dict(row))
        if upload.sha256 is not None:
            return replace(upload, offset=upload.size_bytes)
        try:
            size_bytes = (self._folder / upload_id).stat().st_size
        except FileNotFoundError:  # removed a moment ago
            raise _not_found() from None
        return replace(upload, offset=size_bytes if upload.unchecked_from is None else upload.unchecked_from)

    def _unlink_unknown(self, connection: sqlite3.Connection, names: Iterable[str]) -> None:
        for name in names:
            query = "SELECT 1 FROM uploads WHERE id = ? AND sha256 IS NULL"
            if connection.execute(query, (name,)).fetchone() is None:
                (self._folder / name).unlink(missing_ok=True)

    def _reconcile(self, connection: sqlite3.Connection) -> list[str]:
        """Remove rows without a file; returns the files' names."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = [path.name for path in self._folder.iterdir()]
        for (upload_id,) in connection.execute("SELECT id FROM uploads WHERE sha256 IS NULL").fetchall():
            if upload_id not in found:
                logger.warning("the upload %s has lost its file, and is removed", upload_id)
                connection.execute("DELETE FROM uploads WHERE id = ?", (upload_id,))
        return found


class _Writer:
    """Appends to a file; gathers small pieces in memory.  Its methods but :meth:`add` block on the disk."""

    def __init__(self, path: Path, check_disk: Callable[[int], None]) -> None:
        self.num_bytes = 0
        self.num_pending = 0
        self._path = path
        self._check_disk = check_disk
        self._pending: list[bytes] = []
        self._fd = -1

    def add(self, piece: bytes) -> None:
        self.num_bytes += len(piece)
        self.num_pending += len(piece)
        self._pending.append(piece)

    def flush(self) -> None:
        pending, self._pending, self.num_pending = b"".join(self._pending), [], 0
        if not pending:
            return
        self._check_disk(len(pending))
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            view = memoryview(pending)
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise explain_disk_error(error) from error

    def close(self) -> None:
        """Bring everything to the disk; a second call does nothing."""
        try:
            self.flush()
            if self._fd >= 0:
                os.fsync(self._fd)
        finally:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _taken_over() -> ConflictError:
    text = "Another request goes on with this upload; ask for its offset, and send from there."
    return ConflictError(text, code="upload_taken_over")


def _not_found() -> NotFoundError:
    text = "There is no such upload; it may have expired, or its file was refused."
    return NotFoundError(text, param="upload_id", code="upload_not_found")
