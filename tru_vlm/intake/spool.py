"""The spool owns the files that arrive, and their disk space; it does not know what is in them or who sent them.

Every process has a folder of its own inside the spool's directory, held by a file lock, so that a start can sweep what
dead processes left behind without touching what living ones use.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from tru_vlm.errors import PayloadTooLargeError, UnavailableError

T = TypeVar("T")

FLUSH_BYTES = 1 << 20
"""Bytes that are gathered in memory before one trip to the disk thread."""

RETRY_SECONDS = 10.0
MAX_FILENAME_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """A complete file in the spool.

    Attributes:
        path: where it lies; the name was made by the server.
        size_bytes: its size.
        sha256: hex digest of its content.
        filename: the sender's name for it, for display only; never a path.
        is_borrowed: whether its bytes are another file's too, which accounts for them; they count for nothing here.
    """

    path: Path
    size_bytes: int
    sha256: str
    filename: str | None = None
    is_borrowed: bool = False


class Spool:
    """A bounded folder for files in progress.  Safe to share within one event loop."""

    def __init__(self, directory: Path, max_bytes: int, free_space_floor: int) -> None:
        """Remember where; nothing is touched before :meth:`start` or the first write.

        Args:
            directory: the folder; made when missing.
            max_bytes: most bytes that all spooled files may take together.
            free_space_floor: bytes that must stay free on the disk.
        """
        self._directory = Path(directory)
        self._max_bytes = max_bytes
        self._free_space_floor = free_space_floor
        self._account = threading.Lock()
        self._used_bytes = 0
        self._starting = threading.Lock()
        self._folder: Path | None = None
        self._lock_fd = -1
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="tru-spool")

    @property
    def used_bytes(self) -> int:
        """Bytes of all files in the spool, complete or not."""
        return self._used_bytes

    async def start(self) -> None:
        """Make this process's folder and remove what dead processes left."""
        await self.run(self._start)

    async def close(self) -> None:
        """Remove this process's folder with everything in it."""
        await self.run(self._close)

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Run blocking disk work in the spool's own threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args))

    async def write(
        self,
        chunks: AsyncIterator[bytes],
        *,
        filename: str | None,
        max_bytes: int,
        param: str | None = "video",
    ) -> SpooledFile:
        """Stream chunks into a new file; on any failure or cancellation nothing stays on disk.

        Args:
            chunks: the content, in any pieces.
            filename: the sender's name, for display.
            max_bytes: most bytes of this one file.
            param: the request's field that errors name.

        Raises:
            PayloadTooLargeError: as soon as more than ``max_bytes`` have come.
            UnavailableError: the spool or the disk is full.
        """
        writer = self.new_writer(filename=filename, max_bytes=max_bytes, param=param)
        try:
            async for chunk in chunks:
                await writer.write(chunk)
            # Nothing may be awaited after this: a cancellation would lose the file between two owners.
            return await writer.finish()
        except BaseException:
            await writer.close()
            raise

    def new_writer(self, *, filename: str | None, max_bytes: int, param: str | None = "video") -> SpoolWriter:
        """A writer whose :meth:`SpoolWriter.close` the caller must await, unless it has finished the file."""
        return SpoolWriter(self, filename=display_name(filename), max_bytes=max_bytes, param=param)

    async def remove(self, file: SpooledFile) -> None:
        """Delete a spooled file and give its space back; a second call does nothing."""
        await asyncio.shield(self.run(self._remove, file.path, 0 if file.is_borrowed else file.size_bytes))

    async def borrow(self, source: Path, *, size_bytes: int, sha256: str, filename: str | None) -> SpooledFile:
        """A new spooled file that is ``source`` under another name, and stays when ``source`` is removed.

        Where the disk has no links it is a copy, and takes space.

        Raises:
            FileNotFoundError: ``source`` does not exist (any more).
            UnavailableError: a copy is needed, and the spool is full.
        """
        try:
            path = await self._own(self.run(self._borrow, source), 0)
        except FileNotFoundError:
            raise
        except OSError:
            return await self.link(source, size_bytes=size_bytes, sha256=sha256, filename=filename)
        return SpooledFile(
            path=path, size_bytes=size_bytes, sha256=sha256, filename=display_name(filename), is_borrowed=True
        )

    async def link(self, source: Path, *, size_bytes: int, sha256: str, filename: str | None) -> SpooledFile:
        """A new spooled file with the content of ``source``, without copying where the disk allows.

        Raises:
            FileNotFoundError: ``source`` does not exist (any more).
            UnavailableError: the spool is full.
        """
        path = await self._own(self.run(self._link, source, size_bytes), size_bytes)
        return SpooledFile(path=path, size_bytes=size_bytes, sha256=sha256, filename=display_name(filename))

    def new_path(self) -> Path:
        """A fresh path inside this process's folder, with a name made here.  Blocks on the disk at first use."""
        return self._start() / secrets.token_hex(16)

    def reserve(self, num_bytes: int) -> None:
        """Take space for bytes about to be written.

        Raises:
            UnavailableError: the spool's quota or the disk's floor would be passed.
        """
        with self._account:
            if self._used_bytes + num_bytes > self._max_bytes:
                raise storage_full()
            if shutil.disk_usage(self._start()).free - num_bytes < self._free_space_floor:
                raise storage_full()
            self._used_bytes += num_bytes

    def release(self, num_bytes: int) -> None:
        """Give space back."""
        with self._account:
            self._used_bytes -= num_bytes

    def _start(self) -> Path:
        with self._starting:
            if self._folder is None:
                self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                sweep(self._directory)
                self._folder, self._lock_fd = _claim_folder(self._directory)
            return self._folder

    def _close(self) -> None:
        with self._starting:
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                os.close(self._lock_fd)
                self._folder = None

    def _remove(self, path: Path, size_bytes: int) -> None:
        try:
            path.unlink()
        except FileNotFoundError:
            return
        self.release(size_bytes)

    async def _own(self, making: Awaitable[Path], size_bytes: int) -> Path:
        """The path that is being made; if the caller is cancelled meanwhile, it is removed again."""
        link = asyncio.ensure_future(making)
        try:
            return await asyncio.shield(link)
        except asyncio.CancelledError:
            link.add_done_callback(partial(self._disown, size_bytes))
            raise

    def _disown(self, size_bytes: int, link: asyncio.Future[Path]) -> None:
        """Remove a link that was made for somebody who does not wait for it any more."""
        if not link.cancelled() and link.exception() is None:
            self._threads.submit(self._remove, link.result(), size_bytes)

    def _borrow(self, source: Path) -> Path:
        target = self.new_path()
        os.link(source, target)
        return target

    def _link(self, source: Path, size_bytes: int) -> Path:
        self.reserve(size_bytes)
        target = self.new_path()
        try:
            link_or_copy(source, target)
        except BaseException:
            self.release(size_bytes)
            raise
        return target


class SpoolWriter:
    """One file while it arrives.  Not for use by several tasks at once."""

    def __init__(self, spool: Spool, *, filename: str | None, max_bytes: int, param: str | None) -> None:
        self._spool = spool
        self._filename = filename
        self._max_bytes = max_bytes
        self._param = param
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._received_bytes = 0
        self._hash = hashlib.sha256()
        self._lock = threading.Lock()  # held by disk work, so that closing waits for a write under way
        self._file: BinaryIO | None = None
        self._path: Path | None = None
        self._reserved_bytes = 0
        self._is_closed = False
        self._is_finished = False

    @property
    def size_bytes(self) -> int:
        """Bytes received so far."""
        return self._received_bytes

    async def write(self, data: bytes) -> None:
        """Take a piece in.

        Raises:
            PayloadTooLargeError: the file is larger than its limit.
            UnavailableError: the spool or the disk is full.
        """
        self._received_bytes += len(data)
        if self._received_bytes > self._max_bytes:
            raise too_large(self._max_bytes, param=self._param)
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= FLUSH_BYTES:
            await self._flush()

    async def finish(self) -> SpooledFile:
        """Complete the file."""
        await self._flush()
        path = await self._spool.run(self._finish)
        self._is_finished = True  # here and not in the thread: a cancelled await above leaves the file to close()
        return SpooledFile(
            path=path, size_bytes=self._received_bytes, sha256=self._hash.hexdigest(), filename=self._filename
        )

    async def close(self) -> None:
        """Remove the file unless it was finished.  Goes through even when the awaiting task is cancelled."""
        await asyncio.shield(self._spool.run(self._close))

    async def _flush(self) -> None:
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        await self._spool.run(self._append, pending)

    def _append(self, pieces: list[bytes]) -> None:
        with self._lock:
            if self._is_closed:
                return
            num_bytes = sum(map(len, pieces))
            self._spool.reserve(num_bytes)
            self._reserved_bytes += num_bytes
            file = self._open()
            try:
                for piece in pieces:
                    self._hash.update(piece)
                    file.write(piece)
            except OSError as error:
                raise explain_disk_error(error) from error

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._path = self._spool.new_path()
            self._file = self._path.open("xb", buffering=0)
        return self._file

    def _finish(self) -> Path:
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the writer is closed")
            self._open().close()
            assert self._path is not None  # noqa: S101 - set by _open
            return self._path

    def _close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._is_finished or self._file is None:
                return
            self._file.close()
            self._file = None
            assert self._path is not None  # noqa: S101 - set together with _file
            self._path.unlink(missing_ok=True)
            self._spool.release(self._reserved_bytes)


def too_large(max_bytes: int, *, param: str | None) -> PayloadTooLargeError:
    """The error for a file over its limit."""
    return PayloadTooLargeError(
        f"The file is larger than this server accepts: at most {max_bytes} bytes ({max_bytes / 2**20:.4g} MiB).",
        param=param,
    )


def storage_full() -> UnavailableError:
    """The error for a spool or disk without space."""
    return UnavailableError(
        "The server has no disk space left for another file; try again later.",
        code="storage_full",
        retry_after_seconds=RETRY_SECONDS,
    )


def display_name(filename: str | None) -> str | None:
    """A sender's file name, made fit to be shown: its last component, printable, of bounded length."""
    if not filename:
        return None
    last = filename.replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(character for character in last if character.isprintable()).strip()
    return shown[:MAX_FILENAME_CHARACTERS] or None


def sweep(directory: Path) -> int:
    """Remove the folders of processes that are no longer alive; returns how many."""
    num_removed = 0
    for folder in directory.glob("spool-*"):
        lock_fd = _try_lock(folder / ".lock")
        if lock_fd is None:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock_fd)
        num_removed += 1
    return num_removed


def _claim_folder(directory: Path) -> tuple[Path, int]:
    """A new folder of this process and the descriptor whose lock says that the process lives."""
    while True:
        folder = directory / f"spool-{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        try:
            lock_fd = _try_lock(folder / ".lock", create=True)
        except FileNotFoundError:  # another process's sweep came between mkdir and lock
            continue
        if lock_fd is not None and (folder / ".lock").exists():
            return folder, lock_fd


def _try_lock(path: Path, *, create: bool = False) -> int | None:
    """Take an exclusive lock that ends with the process; None if somebody else holds it."""
    try:
        lock_fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    except FileNotFoundError:
        if create:
            raise
        return None
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock_fd)
        return None
    return lock_fd


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target``, which does not exist, the same content as ``source``; blocks on the disk."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)


def explain_disk_error(error: OSError) -> Exception:
    """The client's error for a full disk; any other failure as it is."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return storage_full()
    return error
