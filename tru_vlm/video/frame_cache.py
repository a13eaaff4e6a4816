"""The cache keeps sampled frames as files, in memory and on disk; it does not know how they are made.

Both tiers are folders with the same rules (:mod:`tru_vlm.video.frame_folder`), the first on a file system in shared
memory.  New frames land there if they fit; the least recently used move to the disk, and from there out.  A hit on the
disk stays there: the system's page cache holds such a file in memory already.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from tru_vlm.durable import to_the_end
from tru_vlm.errors import UnavailableError
from tru_vlm.video.failures import DecodeFailure
from tru_vlm.video.frame_folder import MAX_HEADER_BYTES, Entry, FrameFolder, Trimmed, remove_abandoned
from tru_vlm.video.media import SampledInfo

logger = logging.getLogger(__name__)

T = TypeVar("T")
F = TypeVar("F", bound="asyncio.Future[Any]")
Decode = Callable[[Path, int | None], Awaitable[SampledInfo]]
"""Writes frames to a path and returns their numbers.  For more bytes than it is given it raises ``storage_full``."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - Linux' tmpfs for this; the folder in it is checked to be ours alone
_MEMORY_PREFIX = f"tru-vlm-{os.getuid()}-"
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FrameCacheStats:
    """Counters since the start, and the size now.

    Attributes:
        num_memory_hits, num_disk_hits: requests whose frames were there, by where.
        num_misses: requests that had to decode.
        num_joined: requests that waited for another one's decode.
        num_demotions: entries moved from memory to the disk for space.
        num_evictions: entries removed for space.
        memory_bytes, disk_bytes: bytes of all entries, as last counted.
        memory_limit_bytes, disk_limit_bytes: the most that they may be, by the settings and by what is free.
        memory_state: "on", or why there is no tier in memory.
        num_leases: entries in use now (several leases of one count each).
    """

    num_memory_hits: int
    num_disk_hits: int
    num_misses: int
    num_joined: int
    num_demotions: int
    num_evictions: int
    memory_bytes: int
    disk_bytes: int
    memory_limit_bytes: int
    disk_limit_bytes: int
    memory_state: str
    num_leases: int


class FrameLease:
    """Frames in use: they stay where they are until :meth:`release`.  Usable in ``with``."""

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

    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        *,
        memory_directory: Path | None = None,
        memory_bytes: int = 0,
        min_free_bytes: int = 0,
    ) -> None:
        """Remember where; nothing is touched before :meth:`start` or the first use.

        Args:
            directory: the folder on disk; made when missing.
            max_bytes: most bytes of all entries there.  Entries in use may pass it; then nothing else stays.
            memory_directory: the folder in shared memory, made when missing; None where there is no shared memory.
            memory_bytes: most bytes of all entries there, those in use and those being decoded included.
            min_free_bytes: bytes that entries leave free on the disk.
        """
        self._disk = FrameFolder(directory, max_bytes, min_free_bytes=min_free_bytes)
        self._memory: FrameFolder | None = None
        if memory_directory is not None:
            # Half of what is free is left: shared memory is not there for us alone, and small in many containers.
            self._memory = FrameFolder(memory_directory, memory_bytes, max_share=0.5, is_private=True)
        self._memory_state = "not started"
        self._flights: dict[str, _Flight] = {}
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="tru-frames")
        self._is_started = False
        self._num_memory_hits = self._num_disk_hits = self._num_misses = self._num_joined = 0
        self._num_demotions = self._num_evictions = 0
        self._memory_bytes = self._disk_bytes = self._memory_limit = self._disk_limit = 0
        self._reserved_bytes = 0
        """Of memory, for frames that are being decoded into it."""
        self._num_leases = 0
        self._pending: set[asyncio.Future[Any]] = set()
        self._trimming = asyncio.Lock()
        self._is_trim_due = False

    async def start(self) -> None:
        """Make the folders, remove what dead processes left unfinished, and keep within the bounds."""
        await self.run(self._disk.start)
        await self._start_memory()
        self._is_started = True
        await self._trim()
        if self._memory is not None and self._memory.max_bytes == 0:
            await self._leave_memory()

    async def close(self) -> None:
        """Give up decodes in flight.  Entries stay on disk for the next start; nothing stays in memory."""
        for flight in list(self._flights.values()):
            flight.task.cancel()
        while self._pending:
            await asyncio.wait(self._pending)
        if self._memory is not None and self._is_started:
            self._count_demotions(await self.run(partial(self._memory.empty, rescue=self._disk.adopt)))
            await self.run(self._memory.end)
            await self._trim_disk()

    async def get_or_decode(self, key: str, decode: Decode, *, size: Callable[[], int] | None = None) -> FrameLease:
        """The frames under a key, decoded if they are not there.

        Requests for the same key at once decode once.  The decode stops when the last of them has gone.

        Args:
            key: 64 hex digits over everything that makes the frames what they are.
            decode: writes them to the path that it is given.
            size: says how many bytes they will have, as far as is known; without it they go to the disk.

        Raises:
            UnavailableError: the disk is full.
            Whatever ``size`` and ``decode`` raise, in every request that waited for it.
        """
        check_key(key)
        if not self._is_started:
            await self.start()
        lease = await self.get(key)
        if lease is None:
            return await self._join(key, partial(self._decode, key, decode, size))
        is_in_memory = self._memory is not None and lease.path.parent == self._memory.directory
        self._num_memory_hits += is_in_memory
        self._num_disk_hits += not is_in_memory
        return lease

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
            num_memory_hits=self._num_memory_hits,
            num_disk_hits=self._num_disk_hits,
            num_misses=self._num_misses,
            num_joined=self._num_joined,
            num_demotions=self._num_demotions,
            num_evictions=self._num_evictions,
            memory_bytes=self._memory_bytes,
            disk_bytes=self._disk_bytes,
            memory_limit_bytes=self._memory_limit,
            disk_limit_bytes=self._disk_limit,
            memory_state=self._memory_state,
            num_leases=self._num_leases,
        )

    async def run(self, work: Callable[..., T], *args: object) -> T:
        """Run blocking disk work in this cache's own threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *args))

    def lease_ended(self) -> None:
        """Called by leases."""
        self._num_leases -= 1
        # A trim under way may have passed over what was in use until now.
        if self._disk_bytes > self._disk_limit or self._trimming.locked():
            self._trim_soon()

    async def _start_memory(self) -> None:
        """Begin to use the folder in memory, or say why not; what a killed process left in it is used, or moved.

        What killed servers with another folder on disk left there is removed: nobody else would.
        """
        if self._memory is None:
            self._memory_state = f"off: there is no {SHARED_MEMORY} on this system"
            return
        try:
            await self.run(self._memory.start)
            await self.run(remove_abandoned, list(self._memory.directory.parent.glob(f"{_MEMORY_PREFIX}*")))
        except OSError as error:
            self._memory_state = f"off: {self._memory.directory} cannot be used: {error.strerror}"
            self._memory = None
            logger.warning("frames are cached on disk only; %s", self._memory_state)
            return
        self._memory_state = "on"

    async def _leave_memory(self) -> None:
        """Use the disk only, now that what an earlier server left in memory has moved there."""
        memory, self._memory = self._memory, None
        self._memory_state = "off: its size is set to 0"
        if memory is not None:
            await self.run(memory.end)

    async def _join(self, key: str, decode: Callable[[], Coroutine[Any, Any, Entry]]) -> FrameLease:
        flight = self._flights.get(key)
        if flight is None:
            self._num_misses += 1
            flight = self._flights[key] = _Flight(decode())
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

    async def _decode(self, key: str, decode: Decode, size: Callable[[], int] | None) -> Entry:
        num_bytes = size() if size is not None else None
        needed = num_bytes + MAX_HEADER_BYTES if num_bytes is not None else None
        if needed is not None and self._memory is not None and await self._reserve(self._memory, needed):
            try:
                return await self._decode_into(self._memory, key, decode, num_bytes)
            except DecodeFailure as failure:
                if failure.code != "storage_full":
                    raise
                # More frames than the header promised, or memory that others took meanwhile.
                logger.info("frames go to the disk instead of memory: %s", failure)
            finally:
                self._reserved_bytes -= needed
        return await self._decode_into(self._disk, key, decode, None)

    async def _decode_into(self, folder: FrameFolder, key: str, decode: Decode, max_bytes: int | None) -> Entry:
        part, fd = folder.create(key)  # two system calls; in a thread, a cancellation could lose the descriptor
        try:
            info = await decode(part, max_bytes)
            entry = await to_the_end(self.run(folder.publish, key, part, info, fd))
        except BaseException:
            part.unlink(missing_ok=True)
            os.close(fd)
            raise
        if folder is self._disk:
            self._disk_bytes += info.num_bytes
        self._trim_soon()
        return entry

    async def _reserve(self, memory: FrameFolder, num_bytes: int) -> bool:
        """Make room in memory for frames about to be decoded; whether there is."""
        async with self._trimming:  # nobody else may take the same room
            room = self._reserved_bytes + num_bytes
            if room > memory.max_bytes:
                return False
            await to_the_end(self._trim_memory(memory, room))
            if self._memory_bytes + room > self._memory_limit:
                return False
            self._reserved_bytes += num_bytes
        return True

    def _lease(self, entry: Entry, *, is_hit: bool) -> FrameLease:
        self._num_leases += 1
        return FrameLease(path=entry.path, info=entry.info, fd=entry.fd, is_hit=is_hit, cache=self)

    def _trim_soon(self) -> None:
        if self._is_trim_due:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # released after the loop's end: the next start trims
            return
        self._is_trim_due = True
        self._keep(loop.create_task(self._trim()))

    def _keep(self, future: F) -> F:
        """Hold on to work that :meth:`close` waits for, also when nobody else does any more."""
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    async def _trim(self) -> None:
        async with self._trimming:  # two at once would each make the room that is needed once
            self._is_trim_due = False
            if self._memory is not None:
                await self._trim_memory(self._memory, 0)  # what is reserved has its room already
            await self._trim_disk()

    async def _trim_memory(self, memory: FrameFolder, room: int) -> None:
        try:
            trimmed = await self.run(partial(memory.trim, room=room, rescue=self._disk.adopt))
        except OSError as error:  # somebody took the folder away, or its name
            logger.warning("frames go to the disk instead of memory: %s", error)
            self._memory_limit = 0
            return
        self._count_demotions(trimmed)
        if trimmed.num_rescued:
            self._trim_soon()  # the disk, which has got them

    async def _trim_disk(self) -> None:
        trimmed = await self.run(self._disk.trim)
        self._disk_bytes, self._disk_limit = trimmed.used_bytes, trimmed.limit
        self._num_evictions += trimmed.num_lost

    def _count_demotions(self, trimmed: Trimmed) -> None:
        self._memory_bytes, self._memory_limit = trimmed.used_bytes, trimmed.limit
        self._num_demotions += trimmed.num_rescued
        self._num_evictions += trimmed.num_lost

    # Below: blocking, in threads.

    def _open(self, key: str) -> Entry | None:
        """The entry under a key, locked: an entry on its way to the disk is in both tiers, never in none."""
        memory = self._memory
        entry = memory.open(key) if memory is not None else None
        return entry if entry is not None else self._disk.open(key)


class _Flight:
    """A decode in progress, and how many wait for it."""

    def __init__(self, decode: Coroutine[Any, Any, Entry]) -> None:
        self.task = asyncio.get_running_loop().create_task(decode)
        self.num_waiting = 0

    async def wait(self) -> Entry:
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


def _let_go(task: asyncio.Future[Entry]) -> None:
    if not task.cancelled() and task.exception() is None:
        os.close(task.result().fd)


def _close_found(found: asyncio.Future[Entry | None]) -> None:
    if not found.cancelled() and found.exception() is None:
        entry = found.result()
        if entry is not None:
            os.close(entry.fd)


def shared_memory_directory(frames_directory: Path) -> Path | None:
    """The folder in shared memory that belongs to one on disk; None where the system has no such memory.

    Servers that share the one share the other.
    """
    if not SHARED_MEMORY.is_dir():
        return None
    name = hashlib.sha256(str(frames_directory.absolute()).encode()).hexdigest()[:16]
    return SHARED_MEMORY / f"{_MEMORY_PREFIX}{name}"


def check_key(key: str) -> None:
    """Refuse anything but 64 hex digits: keys become file names.

    Raises:
        ValueError: another text.
    """
    if not _KEY.fullmatch(key):
        raise ValueError("a frame cache key is 64 lower-case hex digits")
