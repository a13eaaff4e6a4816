"""The pool runs decode processes and kills them when it must; it never looks into a file and holds no frames.

One slot holds one process, a fork of the nursery's template.  Whatever goes wrong with a file (crash, hang, memory)
ends that slot's process and that request; the slot gets a new process and the others notice nothing.  A cancelled
await kills at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import tru_vlm
from tru_vlm.types import MediaKind
from tru_vlm.video.decode_nursery import Nursery
from tru_vlm.video.decode_process import DecodeProcess, DiedBeforeError, PoolStartError
from tru_vlm.video.failures import DecodeFailure
from tru_vlm.video.media import DecodeDevice, EffectiveSampling, MediaProbe, ReaderName, SampledInfo

logger = logging.getLogger(__name__)

__all__ = ["DecodePool", "DecodePoolStats", "PoolStartError"]

CLOSE_SECONDS = 10.0
"""How long killed processes may take to be gone before their template is killed too."""
INHERITED_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "VIRTUAL_ENV",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
)
"""What a decode process sees of the environment: no keys, no proxies."""

SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""The template forks, which copies one thread only: no library may start others in it."""


@dataclass(frozen=True, slots=True)
class DecodePoolStats:
    """A look at the pool.

    Attributes:
        num_processes: processes alive and ready.
        num_busy, num_waiting: requests being decoded, and waiting for a process.
        num_probed: files that were looked into so far.
        num_decoded, num_failed: requests that ended well or badly so far.
        num_killed: processes ended by this pool: time limit or cancelled request.
        num_restarts: processes started in place of another one.
        decoder: the reader in use; empty before the first process is ready.
        device: where it decodes: "cpu" or "cuda".
    """

    num_processes: int
    num_busy: int
    num_waiting: int
    num_probed: int
    num_decoded: int
    num_failed: int
    num_killed: int
    num_restarts: int
    decoder: str
    device: DecodeDevice


class DecodePool:
    """A fixed number of decode processes, used by one event loop."""

    def __init__(
        self,
        processes: int,
        timeout_seconds: float,
        memory_bytes: int,
        reader: ReaderName = "auto",
        *,
        device: DecodeDevice = "cpu",
        num_threads: int | None = None,
        max_source_pixels: int = 8192 * 8192,
        max_video_seconds: float = 4 * 3600.0,
    ) -> None:
        """Remember how; nothing starts before :meth:`start` or the first request.

        Args:
            processes: decode processes, hence files decoded at once.
            timeout_seconds: wall clock for one file.
            memory_bytes: address space of one process; with CUDA its own memory.
            reader: which decoder.
            device: where it decodes.
            num_threads: cores for one process; by default they are shared out among the processes.
            max_source_pixels: largest image or frame that is decoded, whatever its header says.
            max_video_seconds: longest video that is decoded, whatever its header says.
        """
        self._timeout_seconds = timeout_seconds
        self._max_source_pixels = max_source_pixels
        self._max_video_seconds = max_video_seconds
        threads = num_threads or max(1, _num_cores() // processes)
        self._cpu_seconds = timeout_seconds * (_num_cores() + 1)  # more than there is: the clock ends first
        limits = ("--memory-bytes", str(memory_bytes), "--num-threads", str(threads))
        self._nursery = Nursery((*limits, "--reader", reader, "--device", device), _environment())
        self._device = device
        self._slots = [_Slot(self) for _ in range(processes)]
        self._free = deque(self._slots)
        self._gate = asyncio.Semaphore(processes)
        self._ids = count(1)
        self._endings: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._num_waiting = self._num_probed = self._num_decoded = self._num_failed = self._num_killed = (
            self._num_started
        ) = 0
        self._decoder = ""

    async def start(self) -> None:
        """Start every process and wait until each has loaded its libraries.

        Raises:
            PoolStartError: one cannot start; all have been ended again.
        """
        try:
            await asyncio.gather(*(slot.child() for slot in self._slots))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End every process and wait until they are gone.  Requests in flight fail."""
        self._is_closed = True
        for slot in self._slots:
            slot.discard()
        while self._endings:
            done, _ = await asyncio.wait(self._endings, timeout=CLOSE_SECONDS)
            if not done:
                self._nursery.kill()
        await self._nursery.close()

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` has begun."""
        return self._is_closed

    @property
    def template_pid(self) -> int | None:
        """Process id of the process that the others are forks of, when it is ready."""
        return self._nursery.pid

    def pids(self) -> list[int]:
        """Process ids of the processes that are ready."""
        return [slot.pid for slot in self._slots if slot.pid is not None]

    def stats(self) -> DecodePoolStats:
        """Counters and gauges; cheap."""
        return DecodePoolStats(
            num_processes=len(self.pids()),
            num_busy=len(self._slots) - len(self._free),
            num_waiting=self._num_waiting,
            num_probed=self._num_probed,
            num_decoded=self._num_decoded,
            num_failed=self._num_failed,
            num_killed=self._num_killed,
            num_restarts=max(0, self._num_started - len(self._slots)),
            decoder=self._decoder,
            device=self._device,
        )

    async def probe(self, path: Path, *, kind: MediaKind) -> MediaProbe:
        """What a file says it holds.

        Raises:
            DecodeFailure: it cannot be read, or reading it crashed, hung or swelled.
        """
        probe = MediaProbe(**await self._ask({"op": "probe", "path": str(path), "kind": kind}))
        self._num_probed += 1
        return probe

    async def sample(
        self, path: Path, *, sampling: EffectiveSampling, out_path: Path, max_bytes: int | None = None
    ) -> SampledInfo:
        """Decode sampled frames into a new ``.npy`` file; on failure the caller removes what is there of it.

        Args:
            path: the video or image.
            sampling: how it is sampled.
            out_path: where the frames go.
            max_bytes: most bytes of frames; one more is ``storage_full``.

        Raises:
            DecodeFailure: the file cannot be decoded so, or decoding it crashed, hung or swelled.
        """
        request = {
            "op": "sample",
            "path": str(path),
            "kind": sampling.kind,
            "sampling": sampling.as_dict(),
            "out_path": str(out_path),
            "max_bytes": max_bytes,
            "max_source_pixels": self._max_source_pixels,
            "max_video_seconds": self._max_video_seconds,
        }
        info = SampledInfo.from_dict(await self._ask(request))
        self._num_decoded += 1
        return info

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        message = {**request, "id": next(self._ids), "cpu_seconds": self._cpu_seconds}
        try:
            async with self._slot() as slot:
                return await self._ask_slot(slot, message)
        except DecodeFailure as failure:
            self._num_failed += 1
            logger.info("%s of a file failed: %s", request["op"], failure)
            raise

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[_Slot]:
        """A slot of one's own."""
        self._num_waiting += 1
        try:
            await self._gate.acquire()
        finally:
            self._num_waiting -= 1
        slot = self._free.pop()
        try:
            yield slot
        finally:
            # A slot whose process is still starting goes to the end of the line.
            (self._free.append if slot.pid is not None else self._free.appendleft)(slot)
            self._gate.release()

    async def _ask_slot(self, slot: _Slot, message: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._try_slot(slot, message)
        except DiedBeforeError:  # killed while it was idle: not this file's doing
            return await self._try_slot(slot, message)

    async def _try_slot(self, slot: _Slot, message: dict[str, Any]) -> dict[str, Any]:
        child = await self._living(slot)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await child.ask(message)
        except DecodeFailure:
            if not child.is_alive:
                slot.discard()
            raise
        except TimeoutError as error:
            self._num_killed += 1
            slot.discard()
            raise DecodeFailure("decode_timeout", f"more than {self._timeout_seconds:g} s") from error
        except BaseException as error:
            self._num_killed += isinstance(error, asyncio.CancelledError)
            slot.discard()
            raise

    async def _living(self, slot: _Slot) -> DecodeProcess:
        if self._is_closed:
            raise DecodeFailure("internal", "the decode pool is closed")
        try:
            return await slot.child()
        except PoolStartError as error:
            raise DecodeFailure("internal", "no decode process can be started", cause=str(error)) from error

    async def spawn(self) -> DecodeProcess:
        """A new process that is ready to work; for the slots.

        Raises:
            PoolStartError: it says, or its end says, that it cannot work.
        """
        self._num_started += 1
        child, greeting = await self._nursery.child()
        self._decoder = greeting["decoder"]
        return child

    def end(self, child: DecodeProcess) -> asyncio.Task[None]:
        """Kill a process now; the task is done when it is gone."""
        child.kill()
        return self.keep(asyncio.get_running_loop().create_task(child.wait_end()))

    def keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Hold on to a task that :meth:`close` waits for."""
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        return task


async def try_decode_process(memory_bytes: int, reader: ReaderName, *, device: DecodeDevice) -> None:
    """Start one decode process and end it again.

    Raises:
        PoolStartError: it cannot start; the text says why.
    """
    pool = DecodePool(1, timeout_seconds=1, memory_bytes=memory_bytes, reader=reader, device=device)
    await pool.start()
    await pool.close()


class _Slot:
    """The place of one process."""

    def __init__(self, pool: DecodePool) -> None:
        self._pool = pool
        self._child: DecodeProcess | None = None
        self._start: asyncio.Task[DecodeProcess] | None = None

    @property
    def pid(self) -> int | None:
        """The process's id, if it is ready."""
        return self._child.pid if self._child is not None and self._child.is_alive else None

    async def child(self) -> DecodeProcess:
        """The slot's process, started when there is none.

        Raises:
            PoolStartError: it cannot start.
        """
        if self._child is not None:
            if self._child.is_alive:
                return self._child
            self._pool.end(self._child)
            self._child = None
        start = self._start or self._begin()
        await asyncio.wait([start])  # not the task itself: a caller that gives up must not cancel the start
        if start.cancelled() or self._pool.is_closed:
            raise PoolStartError("the pool is closed")
        return start.result()

    def discard(self) -> None:
        """Kill this slot's process, and begin to start another one unless the pool is closed."""
        if self._child is not None:
            self._pool.end(self._child)
            self._child = None
        if self._start is None and not self._pool.is_closed:
            self._begin()
        elif self._start is not None and self._pool.is_closed:
            self._start.cancel()

    def _begin(self) -> asyncio.Task[DecodeProcess]:
        loop = asyncio.get_running_loop()
        self._start = start = loop.create_task(self._pool.spawn())
        start.add_done_callback(self._started)
        self._pool.keep(loop.create_task(_settled(start)))
        return start

    def _started(self, start: asyncio.Task[DecodeProcess]) -> None:
        self._start = None
        if start.cancelled():
            return
        error = start.exception()
        if error is not None:
            logger.error("a decode process cannot start: %s", error)
        elif self._pool.is_closed:
            self._pool.end(start.result())
        else:
            self._child = start.result()


async def _settled(task: asyncio.Task[DecodeProcess]) -> None:
    await asyncio.wait([task])


def _environment() -> dict[str, str]:
    """A small environment: no keys and no proxies for a process that reads hostile files."""
    kept = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    root = str(Path(tru_vlm.__file__).resolve().parents[1])
    path = os.pathsep.join(dict.fromkeys([root, *(entry for entry in sys.path if entry)]))
    python = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return {**kept, **python, **SINGLE_THREADED}


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
