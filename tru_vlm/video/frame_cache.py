"""The cache keeps sampled frames as files; it does not know how they are made, nor what they show.

The folder is the index: an entry is ``<key>.npy`` with its numbers in ``<key>.json``; its age is the file's
modification time, renewed at each use.  So it survives a restart, several processes may share the folder, and nothing
can go out of step.  A lease holds a shared ``flock`` on the frames; whoever evicts needs the exclusive one.
Frames are written as ``<key>.<random>.part`` under a lock and renamed when complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from tru_vlm.errors import UnavailableError
from tru_vlm.video.failures import DecodeFailure
from tru_vlm.video.media import SampledInfo

logger = logging.getLogger(__name__)

T = TypeVar("T")
F = TypeVar("F", bound="asyncio.Future[Any]")
Decode = Callable[[Path], Awaitable[SampledInfo]]
"""Writes frames to a path and returns their numbers."""

_KEY = re.compile(r"[0-9a-f]{64}")
PART_SUFFIX = ".part"
NPY_MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 4096


@dataclass(frozen=True, slots=True)
class FrameCacheStats:
    """Counters since the start, and the size now.

    Attributes:
        num_hits: requests whose frames were there.
        num_misses: requests that had to decode.
        num_joined: requests that waited for another one's decode.
        num_evictions: entries removed for space.
        used_bytes: bytes of all entries, as last counted.
        num_leases: entries in use now (several leases of one count each).
    """

    num_hits: int
    num_misses: int
    num_joined: int
    num_evictions: int
    used_bytes: int
    num_leases: int


class FrameLease:
    """Frames in use: they stay on disk until :meth:`release`.  Usable in ``with``."""

    def __init__(self, *, path: Path, info: SampledInfo, fd: int, is_hit: bool, cache: FrameCache) -> None:
        self.path = path
        self.info = info
        self.is_hit = is_hit
        self._fd = fd
        self._cache = cache

    def release(self) -> None:
        """Let the frames go; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)  # ends the lock
            self._fd = -1
            self._cache.lease_ended()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release."""
        self.release()


class FrameCache:
    """Sampled frames by key, bounded in bytes; the least recently used go first.  For one event loop."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Remember where; nothing is touched before :meth:`start` or the first use.

        Args:
            directory: the folder; made when missing.
            max_bytes: most bytes of all entries.  Entries in use may pass it; then nothing else stays.
        """
        self._directory = Path(directory)
        self._max_bytes = max_bytes
        self._flights: dict[str, _Flight] = {}
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="tru-frames")
        self._is_started = False
        self._num_hits = self._num_misses = self._num_joined = self._num_evictions = 0
        self._used_bytes = 0
        self._num_leases = 0
        self._pending: set[asyncio.Future[Any]] = set()
        self._trimming = asyncio.Lock()

    async def start(self) -> None:
        """Make the folder, remove what dead processes left unfinished, and keep within the bound."""
        await self.run(self._sweep)
        self._is_started = True
        await self._trim()

    async def close(self) -> None:
        """Give up decodes in flight.  Entries stay for the next start."""
        for flight in list(self._flights.values()):
            flight.task.cancel()
        while self._pending:
            await asyncio.wait(self._pending)

    async def get_or_decode(self, key: str, decode: Decode) -> FrameLease:
        """The frames under a key, decoded if they are not there.

        Requests for the same key at once decode once.  The decode stops when the last of them has gone.

        Args:
            key: 64 hex digits over everything that makes the frames what they are.
            decode: writes them to the path that it is given.

        Raises:
            UnavailableError: the disk is full.
            Whatever ``decode`` raises, in every request that waited for it.
        """
        check_key(key)
        if not self._is_started:
            await self.start()
        lease = await self.get(key)
        if lease is not None:
            self._num_hits += 1
            return lease
        return await self._join(key, decode)

    async def get(self, key: str) -> FrameLease | None:
        """The frames under a key, if they are there; not counted as a hit or miss."""
        check_key(key)
        found = self._keep(asyncio.ensure_future(self.run(self._open, key)))
        try:
            entry = await asyncio.shield(found)
        except asyncio.CancelledError:
            found.add_done_callback(_close_found)
            raise
        return self._lease(entry, is_hit=True) if entry is not None else None

    def stats(self) -> FrameCacheStats:
        """Counters and gauges; cheap."""
        return FrameCacheStats(
            num_hits=self._num_hits,
            num_misses=self._num_misses,
            num_joined=self._num_joined,
            num_evictions=self._num_evictions,
            used_bytes=self._used_bytes,
            num_leases=self._num_leases,
        )

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Run blocking disk work in this cache's own threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args))

    def lease_ended(self) -> None:
        """Called by leases."""
        self._num_leases -= 1
        if self._used_bytes > self._max_bytes:
            self._trim_soon()

    async def _join(self, key: str, decode: Decode) -> FrameLease:
        flight = self._flights.get(key)
        if flight is None:
            self._num_misses += 1
            flight = self._flights[key] = _Flight(self._decode(key, decode))
            self._keep(flight.task)
        else:
            self._num_joined += 1
        flight.num_waiting += 1
        try:
            return self._lease(await flight.wait(), is_hit=False)
        finally:
            flight.num_waiting -= 1
            if flight.num_waiting == 0:
                if self._flights.get(key) is flight:
                    del self._flights[key]
                flight.abandon()

    async def _decode(self, key: str, decode: Decode) -> _Entry:
        part = self._directory / f"{key}.{secrets.token_hex(8)}{PART_SUFFIX}"
        fd = _create_locked(part)  # two system calls; in a thread, a cancellation could lose the descriptor
        try:
            info = await decode(part)
            entry = await _to_the_end(self.run(self._publish, key, part, info, fd))
        except BaseException:
            part.unlink(missing_ok=True)
            os.close(fd)
            raise
        self._used_bytes += info.num_bytes
        self._trim_soon()
        return entry

    def _lease(self, entry: _Entry, *, is_hit: bool) -> FrameLease:
        self._num_leases += 1
        return FrameLease(path=entry.path, info=entry.info, fd=entry.fd, is_hit=is_hit, cache=self)

    def _trim_soon(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # released after the loop's end: the next start trims
            return
        self._keep(loop.create_task(self._trim()))

    def _keep(self, future: F) -> F:
        """Hold on to work that :meth:`close` waits for, also when nobody else does any more."""
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    async def _trim(self) -> None:
        async with self._trimming:  # two at once would each make the room that is needed once
            self._used_bytes, num_evicted = await self.run(trim_folder, self._directory, self._max_bytes)
            self._num_evictions += num_evicted

    # Below: blocking, in threads.

    def _sweep(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for part in self._directory.glob(f"*{PART_SUFFIX}"):
            _remove_unlocked(part)
        for sidecar in self._directory.glob("*.json"):
            if not sidecar.with_suffix(".npy").exists():
                sidecar.unlink(missing_ok=True)

    def _open(self, key: str) -> _Entry | None:
        """The entry under a key, locked against eviction; a damaged one is removed."""
        path = self._directory / f"{key}.npy"
        fd = _lock_shared(path)
        if fd is None:
            return None
        info = _read_info(path, fd)
        if info is None:
            os.close(fd)
            logger.warning("a damaged entry of the frame cache is removed: %s", key)
            _remove_unlocked(path)
            return None
        os.utime(fd)
        return _Entry(path=path, info=info, fd=fd)

    def _publish(self, key: str, part: Path, info: SampledInfo, fd: int) -> _Entry:
        """Turn a finished part into an entry; its lock becomes the first lease's."""
        path = self._directory / f"{key}.npy"
        sidecar_part = part.with_name(f"{part.name}.json{PART_SUFFIX}")
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            sidecar_part.write_text(json.dumps(info.as_dict()))
            sidecar_part.replace(path.with_suffix(".json"))
            part.replace(path)
        except OSError as error:
            sidecar_part.unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DecodeFailure("storage_full", cause=str(error)) from error
            raise
        return _Entry(path=path, info=info, fd=fd)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry and the descriptor whose lock keeps it."""

    path: Path
    info: SampledInfo
    fd: int


class _Flight:
    """A decode in progress, and how many wait for it."""

    def __init__(self, decode: Coroutine[Any, Any, _Entry]) -> None:
        self.task = asyncio.get_running_loop().create_task(decode)
        self.num_waiting = 0

    async def wait(self) -> _Entry:
        """The entry, with a descriptor of the caller's own.  Being cancelled here leaves the decode alone."""
        await asyncio.wait([self.task])
        if self.task.cancelled():
            raise UnavailableError("The server is shutting down.")
        entry = self.task.result()
        return replace(entry, fd=os.dup(entry.fd))  # the lock ends with its last descriptor

    def abandon(self) -> None:
        """Nobody waits any more: stop the decode, or let its result go."""
        self.task.cancel()
        self.task.add_done_callback(_let_go)


def _let_go(task: asyncio.Future[_Entry]) -> None:
    if not task.cancelled() and task.exception() is None:
        os.close(task.result().fd)


def _close_found(found: asyncio.Future[_Entry | None]) -> None:
    if not found.cancelled() and found.exception() is None:
        entry = found.result()
        if entry is not None:
            os.close(entry.fd)


async def _to_the_end(work: Awaitable[T]) -> T:
    """Await work that must not be left half done; a cancellation waits for it and then goes on."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def check_key(key: str) -> None:
    """Refuse anything but 64 hex digits: keys become file names.

    Raises:
        ValueError: another text.
    """
    if not _KEY.fullmatch(key):
        raise ValueError("a frame cache key is 64 lower-case hex digits")


def trim_folder(directory: Path, max_bytes: int) -> tuple[int, int]:
    """Remove the least recently used entries that nobody uses until the rest fits; blocks on the disk.

    Returns:
        Bytes that remain, and how many entries were removed.
    """
    found = []
    for path in directory.glob("*.npy"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    used_bytes, num_removed = sum(size for _, size, _ in found), 0
    for _, size, path in sorted(found):
        if used_bytes <= max_bytes:
            break
        num_removed += _remove_unlocked(path)
        used_bytes -= 0 if path.exists() else size
    return used_bytes, num_removed


def _create_locked(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _lock_shared(path: Path) -> int | None:
    """A descriptor that keeps the file from being evicted; None if it is not there, or is just going."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == path.stat().st_ino:
            return fd
    except OSError:  # being evicted, or evicted between opening and locking
        pass
    os.close(fd)
    return None


def _remove_unlocked(path: Path) -> bool:
    """Remove a file that nobody has locked, and its sidecar; whether it was removed."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino != path.stat().st_ino:
            return False
        path.unlink()
        if path.suffix == ".npy":
            path.with_suffix(".json").unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _read_info(path: Path, fd: int) -> SampledInfo | None:
    """An entry's numbers; None when they or the frames are damaged."""
    try:
        data = json.loads(path.with_suffix(".json").read_bytes())
        info = SampledInfo.from_dict(data)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    header_bytes = os.fstat(fd).st_size - info.num_bytes
    is_whole = 0 < header_bytes <= MAX_HEADER_BYTES and os.pread(fd, len(NPY_MAGIC), 0) == NPY_MAGIC
    return info if is_whole else None
