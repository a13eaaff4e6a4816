"""The pool runs decode processes and kills them when it must; it never looks into a file and holds no frames.

One slot holds one process.  Whatever goes wrong with a file (crash, hang, memory) ends that slot's process and that
request; the slot gets a new process and the others notice nothing.  A cancelled await kills at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
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
from tru_vlm.video.failures import DecodeFailure
from tru_vlm.video.media import EffectiveSampling, MediaProbe, ReaderName, SampledInfo

logger = logging.getLogger(__name__)

START_SECONDS = 300.0
"""Longest start of a process; importing the libraries takes seconds, and much longer on a starved machine."""

MAX_ANSWER_BYTES = 16 << 20
INHERITED_VARIABLES = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "VIRTUAL_ENV",
)
"""What a decode process sees of the environment: no keys, no proxies."""

_FILE_SIGNALS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP})


class PoolStartError(RuntimeError):
    """No decode process can be started; the text says why."""


@dataclass(frozen=True, slots=True)
class DecodePoolStats:
    """A look at the pool.

    Attributes:
        num_processes: processes alive and ready.
        num_busy, num_waiting: requests being decoded, and waiting for a process.
        num_decoded, num_failed: requests that ended well or badly so far.
        num_killed: processes ended by this pool: time limit or cancelled request.
        num_restarts: processes started in place of another one.
        decoder: the reader in use; empty before the first process is ready.
        decoder_states: every decoder: "available", or why not.
    """

    num_processes: int
    num_busy: int
    num_waiting: int
    num_decoded: int
    num_failed: int
    num_killed: int
    num_restarts: int
    decoder: str
    decoder_states: dict[str, str]


class DecodePool:
    """A fixed number of decode processes, used by one event loop."""

    def __init__(
        self,
        processes: int,
        timeout_seconds: float,
        memory_bytes: int,
        reader: ReaderName = "auto",
        *,
        num_threads: int | None = None,
        max_source_pixels: int = 8192 * 8192,
    ) -> None:
        """Remember how; nothing starts before :meth:`start` or the first request.

        Args:
            processes: decode processes, hence files decoded at once.
            timeout_seconds: wall clock for one file.
            memory_bytes: address space of one process.
            reader: which decoder.
            num_threads: threads of one process; the cores shared out among the processes by default.
            max_source_pixels: largest image that is decoded.
        """
        self._timeout_seconds = timeout_seconds
        self._max_source_pixels = max_source_pixels
        threads = num_threads or max(1, _num_cores() // processes)
        self._cpu_seconds = timeout_seconds * (threads + 1)
        self._arguments = ("--memory-bytes", str(memory_bytes), "--num-threads", str(threads), "--reader", reader)
        self._slots = [_Slot(self) for _ in range(processes)]
        self._free = deque(self._slots)
        self._gate = asyncio.Semaphore(processes)
        self._ids = count(1)
        self._endings: set[asyncio.Task[None]] = set()
        self._is_closed = False
        self._num_waiting = self._num_decoded = self._num_failed = self._num_killed = self._num_started = 0
        self._decoder = ""
        self._decoder_states: dict[str, str] = {}

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
            await asyncio.gather(*self._endings, return_exceptions=True)

    @property
    def is_closed(self) -> bool:
        """Whether :meth:`close` has begun."""
        return self._is_closed

    def pids(self) -> list[int]:
        """Process ids of the processes that are ready."""
        return [slot.pid for slot in self._slots if slot.pid is not None]

    def stats(self) -> DecodePoolStats:
        """Counters and gauges; cheap."""
        return DecodePoolStats(
            num_processes=len(self.pids()),
            num_busy=len(self._slots) - len(self._free),
            num_waiting=self._num_waiting,
            num_decoded=self._num_decoded,
            num_failed=self._num_failed,
            num_killed=self._num_killed,
            num_restarts=max(0, self._num_started - len(self._slots)),
            decoder=self._decoder,
            decoder_states=self._decoder_states,
        )

    async def probe(self, path: Path, *, kind: MediaKind) -> MediaProbe:
        """What a file says it holds.

        Raises:
            DecodeFailure: it cannot be read, or reading it crashed, hung or swelled.
        """
        answer = await self._ask({"op": "probe", "path": str(path), "kind": kind})
        return MediaProbe(**answer)

    async def sample(self, path: Path, *, sampling: EffectiveSampling, out_path: Path) -> SampledInfo:
        """Decode sampled frames into a new ``.npy`` file; on failure the caller removes what is there of it.

        Raises:
            DecodeFailure: the file cannot be decoded so, or decoding it crashed, hung or swelled.
        """
        request = {
            "op": "sample",
            "path": str(path),
            "kind": sampling.kind,
            "sampling": sampling.as_dict(),
            "out_path": str(out_path),
            "max_source_pixels": self._max_source_pixels,
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
        except _DiedBeforeError:  # killed while it was idle: not this file's doing
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

    async def _living(self, slot: _Slot) -> _Child:
        if self._is_closed:
            raise DecodeFailure("internal", "the decode pool is closed")
        try:
            return await slot.child()
        except PoolStartError as error:
            raise DecodeFailure("internal", "no decode process can be started", cause=str(error)) from error

    async def spawn(self) -> _Child:
        """A new process that has loaded its libraries; for the slots.

        Raises:
            PoolStartError: it says, or its end says, that it cannot work.
        """
        self._num_started += 1
        child = await _Child.spawn(self._arguments)
        try:
            async with asyncio.timeout(START_SECONDS):
                greeting = await child.greeting()
        except BaseException:
            await asyncio.shield(self.end(child))
            raise
        self._decoder, self._decoder_states = greeting["decoder"], greeting["states"]
        return child

    def end(self, child: _Child) -> asyncio.Task[None]:
        """Kill a process now; the task is done when it is gone."""
        child.kill()
        return self.keep(asyncio.get_running_loop().create_task(child.wait_end()))

    def keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Hold on to a task that :meth:`close` waits for."""
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        return task


class _Slot:
    """The place of one process."""

    def __init__(self, pool: DecodePool) -> None:
        self._pool = pool
        self._child: _Child | None = None
        self._start: asyncio.Task[_Child] | None = None

    @property
    def pid(self) -> int | None:
        """The process's id, if it is ready."""
        return self._child.pid if self._child is not None and self._child.is_alive else None

    async def child(self) -> _Child:
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

    def _begin(self) -> asyncio.Task[_Child]:
        loop = asyncio.get_running_loop()
        self._start = start = loop.create_task(self._pool.spawn())
        start.add_done_callback(self._started)
        self._pool.keep(loop.create_task(_settled(start)))
        return start

    def _started(self, start: asyncio.Task[_Child]) -> None:
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


async def _settled(task: asyncio.Task[_Child]) -> None:
    await asyncio.wait([task])


class _DiedBeforeError(Exception):
    """The process was gone before it accepted the request."""


class _Child:
    """One decode process and its socket."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._is_broken = False

    @classmethod
    async def spawn(cls, arguments: tuple[str, ...]) -> _Child:
        """Start a process; it greets when its libraries are loaded."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "tru_vlm.video.decode_child",
                    *("--fd", str(theirs.fileno()), "--parent-pid", str(os.getpid()), *arguments),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C is for the server, which drains first
                    cwd="/",
                    env=_environment(),
                )
            reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_ANSWER_BYTES)
        except BaseException:
            ours.close()
            raise
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process can take a request, as far as the loop knows."""
        return self._process.returncode is None and not self._is_broken

    async def greeting(self) -> dict[str, Any]:
        """The first message: which decoder was loaded.

        Raises:
            PoolStartError: it cannot work, or ended.
        """
        message = await self._receive()
        if message is None:
            raise PoolStartError(f"a decode process ended at its start with exit status {await self._process.wait()}")
        if not message.get("ready"):
            raise PoolStartError(str(message.get("reason")))
        return message

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its result.

        Raises:
            DecodeFailure: the answer is an error, or the process ended over it.
            _DiedBeforeError: the process was gone already.
        """
        if not await self._deliver(request):
            self._is_broken = True
            raise _DiedBeforeError
        answer = await self._receive()
        if answer is None:
            self._is_broken = True
            raise _ending(await self._process.wait())
        if "error" in answer:
            error = answer["error"]
            # After a fault of its own, or out of memory, the process ends: do not give it another file.
            self._is_broken = error["code"] in ("internal", "decode_memory")
            raise DecodeFailure(error["code"], error["detail"], stage=error["stage"], cause=error["cause"])
        result: dict[str, Any] = answer["result"]
        return result

    async def _deliver(self, request: dict[str, Any]) -> bool:
        """Whether the process accepted the request."""
        try:
            self._writer.write(json.dumps(request).encode() + b"\n")
            await self._writer.drain()
        except ConnectionError:
            return False
        return await self._receive() == {"accepted": request["id"]}

    async def _receive(self) -> dict[str, Any] | None:
        """The next message; None when the process has ended."""
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        if not line.endswith(b"\n"):
            return None
        message: dict[str, Any] = json.loads(line)
        return message

    def kill(self) -> None:
        """End the process at once."""
        self._is_broken = True
        self._writer.close()
        try:
            self._process.kill()
        except ProcessLookupError:
            return

    async def wait_end(self) -> None:
        """Wait until a killed process is gone."""
        await self._process.wait()


def _ending(status: int) -> DecodeFailure:
    """What the end of a process in the middle of a file means."""
    if -status in _FILE_SIGNALS:
        return DecodeFailure("decoder_crashed", cause=f"signal {-status}")
    if -status == signal.SIGXCPU:
        return DecodeFailure("decode_timeout", cause="CPU time limit")
    return DecodeFailure("internal", "a decode process was ended from outside", cause=f"exit status {status}")


def _environment() -> dict[str, str]:
    """A small environment: no keys and no proxies for a process that reads hostile files."""
    kept = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    root = str(Path(tru_vlm.__file__).resolve().parents[1])
    path = os.pathsep.join(dict.fromkeys([root, *(entry for entry in sys.path if entry)]))
    return {**kept, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
