"""The library keeps videos and images by their content, within a quota and until they expire.

The database says what is there, the files are named after their content: ``videos/<sha256>``.  A row is written after
its file and removed before it, each in a transaction that no other process's can overlap, so after ``kill -9`` at any
moment there is at most a file without a row, which the next start removes.

A video that is used is borrowed: the user gets a name of its own for the file (a hard link in the spool).  So a video
can be deleted, or expire, at any time, and what uses it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tru_vlm.database import Database
from tru_vlm.durable import flush
from tru_vlm.errors import InsufficientStorageError, NotFoundError, UnavailableError
from tru_vlm.intake.spool import Spool, SpooledFile, display_name, link_or_copy
from tru_vlm.library import catalog
from tru_vlm.library.catalog import Content, Video
from tru_vlm.video.media import LocalFile, MediaProbe
from tru_vlm.video.media_type import CONTENT_TYPES

logger = logging.getLogger(__name__)

Clock = Callable[[], float]

_TOUCH_SECONDS = 60.0
"""A video's last use is written down at most this often: a player asks for many ranges."""


@dataclass(frozen=True, slots=True)
class LibraryStats:
    """How full the library is."""

    num_videos: int
    used_bytes: int
    max_bytes: int


class VideoLibrary:
    """Videos by owner and content.  For one event loop; several processes may share the folder.

    Args:
        directory: the folder; made when missing.
        database: the library's, with :data:`tru_vlm.library.catalog.MIGRATIONS`; started and closed by its owner.
        spool: where borrowed files lie, on the same disk.
        max_bytes: most bytes of all contents and uploads.
        ttl_seconds: how long a video is kept after its last use; 0 for ever.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        directory: Path,
        database: Database,
        spool: Spool,
        *,
        max_bytes: int,
        ttl_seconds: float,
        clock: Clock = time.time,
    ) -> None:
        self._folder = directory / "videos"
        self._database = database
        self._spool = spool
        self._max_bytes = max_bytes
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._is_use_lost = False  # told once, until it can be written again

    async def start(self) -> None:
        """Make files and rows agree, whatever happened to the process before.

        Raises:
            OSError: the folder cannot be used.
        """
        names = await self._database.run(self._reconcile)
        await self._database.run(partial(self._unlink_unknown, names=names))
        await self.expire()

    async def put(
        self,
        file: LocalFile,
        probe: MediaProbe,
        *,
        filename: str | None,
        owner: str,
        upload_id: str | None = None,
        param: str | None = "video",
    ) -> tuple[Video, bool]:
        """Keep a file that was inspected; what the owner has already is found again, and its life begins anew.

        Args:
            file: stays the caller's; the library makes a name of its own for it.
            probe: what is in it.
            filename: the owner's name for it.
            owner: whose it is.
            upload_id: the upload that it came with, whose space it takes over.
            param: the request's field that errors name.

        Returns:
            The entry, and whether it is new.

        Raises:
            InsufficientStorageError: the quota would be passed; the text has the numbers.
            UnavailableError: the disk is full.
        """
        content = _content(file, probe)
        await asyncio.to_thread(flush, file.path)
        await self.make_room(content.size_bytes, but_for_upload=upload_id)

        def put(connection: sqlite3.Connection) -> tuple[Video, bool]:
            if not catalog.has_content(connection, content.sha256):
                self.check_room(connection, content.size_bytes, but_for_upload=upload_id, param=param)
                self._place(file.path, content.sha256)
                catalog.add_content(connection, content)
            is_new = catalog.add_video(connection, owner, content.sha256, display_name(filename), self._clock())
            video = catalog.find_video(connection, owner, content.sha256)
            assert video is not None  # noqa: S101 - added above
            return video, is_new

        return await self._database.run(put)

    async def get(self, video_id: str, owner: str, *, param: str = "video_id") -> Video:
        """An owner's video.

        Raises:
            NotFoundError: there is none (any more).
        """
        video = await self._database.read(lambda connection: catalog.find_video(connection, owner, video_id))
        if video is None:
            raise _not_found(video_id, param)
        return video

    async def borrow(
        self, video_id: str, owner: str, *, param: str = "video_id", is_use: bool = True
    ) -> tuple[Video, SpooledFile]:
        """A video, and its file under a name of the caller's own, who removes it from the spool.

        Args:
            video_id: which.
            owner: whose.
            param: the request's field that errors name.
            is_use: whether its life begins anew.

        Raises:
            NotFoundError: there is none (any more).
        """
        video = await self.get(video_id, owner, param=param)
        if is_use and self._ttl_seconds and self._clock() > video.used_at + min(_TOUCH_SECONDS, self._ttl_seconds / 10):
            await self._note_use(video)
        content = video.content
        try:
            file = await self._spool.borrow(
                self._folder / content.sha256,
                size_bytes=content.size_bytes,
                sha256=content.sha256,
                filename=video.filename,
            )
        except FileNotFoundError:  # deleted a moment ago
            raise _not_found(video_id, param) from None
        return video, file

    async def page(self, owner: str, *, below: int | None = None, limit: int, words: str | None = None) -> list[Video]:
        """An owner's videos, the newest first, from below a :attr:`Video.number` on.

        Args:
            owner: whose.
            below: only numbers below this one.
            limit: most videos.
            words: only videos whose name has them, in either case.
        """
        return await self._database.read(
            partial(catalog.list_videos, owner=owner, below=below, limit=limit, words=words)
        )

    async def rename(self, video_id: str, owner: str, filename: str) -> Video:
        """Give a video another name.

        Raises:
            NotFoundError: there is none (any more).
        """
        await self._database.run(partial(catalog.rename_video, owner=owner, sha256=video_id, filename=filename))
        return await self.get(video_id, owner)

    async def delete(self, video_id: str, owner: str) -> None:
        """Remove an owner's video; its file goes when nobody else has it.  What uses it goes on.

        Raises:
            NotFoundError: there is none (any more).
        """
        if not await asyncio.shield(self._delete(partial(_remove_one, owner=owner, sha256=video_id))):
            raise _not_found(video_id, "video_id")

    async def expire(self) -> int:
        """Remove what has not been used for too long; returns how many contents lost an entry."""
        if not self._ttl_seconds:
            return 0
        before = self._clock() - self._ttl_seconds
        return len(await asyncio.shield(self._delete(partial(catalog.remove_unused_videos, used_before=before))))

    async def stats(self) -> LibraryStats:
        """How full it is."""

        def read(connection: sqlite3.Connection) -> LibraryStats:
            (num_videos,) = connection.execute("SELECT count(*) FROM videos").fetchone()
            return LibraryStats(num_videos, catalog.used_bytes(connection), self._max_bytes)

        return await self._database.read(read)

    def expires_at(self, video: Video) -> float | None:
        """When a video that is not used again may be removed, seconds since 1970; None for never."""
        return video.used_at + self._ttl_seconds if self._ttl_seconds else None

    async def make_room(self, num_bytes: int, *, but_for_upload: str | None = None) -> None:
        """Remove what has expired, if that many bytes do not fit otherwise."""
        read = partial(catalog.used_bytes, but_for_upload=but_for_upload)
        if await self._database.read(read) + num_bytes > self._max_bytes:
            await self.expire()

    def check_room(
        self,
        connection: sqlite3.Connection,
        num_bytes: int,
        *,
        but_for_upload: str | None = None,
        param: str | None = None,
    ) -> None:
        """Refuse bytes that do not fit, inside a transaction that would take them.

        Raises:
            InsufficientStorageError: with the numbers.
        """
        used = catalog.used_bytes(connection, but_for_upload=but_for_upload)
        if used + num_bytes > self._max_bytes:
            raise InsufficientStorageError(
                f"The file has {num_bytes} bytes; {used} of the {self._max_bytes} bytes for kept videos are taken. "
                "Delete videos, or wait until some expire.",
                param=param,
            )

    async def _note_use(self, video: Video) -> None:
        """Write down that a video is used now.  Where that cannot be written, on a full disk, using it goes on."""
        touch = partial(catalog.touch_video, owner=video.owner, sha256=video.content.sha256, now=self._clock())
        try:
            await self._database.run(touch)
        except UnavailableError as error:
            if not self._is_use_lost:
                logger.warning("a kept video's last use cannot be written down, so that it expires sooner: %s", error)
            self._is_use_lost = True
        else:
            self._is_use_lost = False

    async def _delete(self, remove: Callable[[sqlite3.Connection], list[str]]) -> list[str]:
        """Remove entries, and then the files that nobody has any more; returns the entries' contents."""
        contents = await self._database.free(remove)
        if contents:
            await self._database.run(partial(self._unlink_unknown, names=contents))
        return contents

    # Below: in the database's thread, inside a transaction.

    def _place(self, source: Path, sha256: str) -> None:
        target = self._folder / sha256
        target.unlink(missing_ok=True)  # without a row, it is what a process that was killed left
        link_or_copy(source, target)
        target.chmod(0o600)
        flush(self._folder)

    def _unlink_unknown(self, connection: sqlite3.Connection, names: Iterable[str]) -> None:
        """Remove files that no row tells of.  Their rows may not have gone in this transaction, which could fail."""
        for name in names:
            if not catalog.has_content(connection, name):
                with contextlib.suppress(OSError):
                    (self._folder / name).unlink()

    def _reconcile(self, connection: sqlite3.Connection) -> list[str]:
        """Remove rows without a file; returns the files' names."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = {entry.name: entry.stat().st_size for entry in os.scandir(self._folder)}
        for sha256, size_bytes in catalog.content_sizes(connection).items():
            if found.get(sha256) != size_bytes:
                logger.warning("the kept video %s has lost its file, and is removed", sha256)
                catalog.forget_content(connection, sha256)
        return list(found)


def _content(file: LocalFile, probe: MediaProbe) -> Content:
    return Content(
        sha256=file.sha256,
        size_bytes=file.size_bytes,
        kind=probe.kind,
        media_type=CONTENT_TYPES[probe.container],
        container=probe.container,
        codec=probe.codec,
        width=probe.width,
        height=probe.height,
        duration_seconds=probe.duration_seconds,
        source_fps=probe.average_fps,
        num_frames=probe.num_frames,
    )


def _remove_one(connection: sqlite3.Connection, owner: str, sha256: str) -> list[str]:
    return [sha256] if catalog.remove_video(connection, owner, sha256) else []


def _not_found(video_id: str, param: str) -> NotFoundError:
    text = f"There is no video {video_id[:80]!r} here; it may have expired or been deleted."
    return NotFoundError(text, param=param, code="video_not_found")
