"""Runs of packets decoded side by side, each by a decoder with one thread. Knows no pixels and no container."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from contextlib import closing

import av

from qwen_vl_utils.metadata import FrameTable
from qwen_vl_utils.readers.pyav_session import DecodeRun, Session

_MOST_IDLE_SHARE = 0.2
_FRAMES_IN_FLIGHT = 2

_Found = tuple[int, av.VideoFrame]


def divides_well(runs: Sequence[DecodeRun], num_threads: int) -> bool:
    """Whether ``num_threads`` decoders that take the next run when they are free would be busy most of the time."""
    loads = [0] * num_threads
    for run in runs:
        loads[loads.index(min(loads))] += run.num_packets
    return sum(loads) >= (1 - _MOST_IDLE_SHARE) * max(loads) * num_threads


def decode_runs(table: FrameTable, runs: Sequence[DecodeRun], *, num_threads: int) -> Generator[_Found]:
    """The wanted frames of ``runs``, in any order, as (index, frame); at most one a thread and two more are held.

    No thread waits for a picture that another one decodes, as FFmpeg's own threads do: less wall and less CPU time.
    Raises what a thread raised; ends them all when it is closed.
    """
    workers = _Workers(table, runs)
    for _ in range(num_threads):
        threading.Thread(target=workers.work, name="qwen-vl-decode", daemon=True).start()
    num_running = num_threads
    try:
        while num_running:
            item = workers.found.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                num_running -= 1
            else:
                yield item
    finally:
        workers.is_over.set()
        while num_running:
            num_running -= workers.found.get() is None


class _Workers:
    """What the threads share. Each puts None last, whatever happened to it."""

    def __init__(self, table: FrameTable, runs: Sequence[DecodeRun]) -> None:
        self.found: queue.Queue[_Found | BaseException | None] = queue.Queue(maxsize=_FRAMES_IN_FLIGHT)
        self.is_over = threading.Event()
        self._table = table
        self._waiting = iter(runs)
        self._lock = threading.Lock()

    def work(self) -> None:
        try:
            with closing(Session(self._table, num_threads=1)) as session:
                for item in self._decoded(session):
                    self.found.put(item)
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            self.found.put(error)
        self.found.put(None)

    def _decoded(self, session: Session) -> Generator[_Found]:
        while (run := self._next()) is not None:
            for item in session.decode(run):
                yield item
                if self.is_over.is_set():
                    return

    def _next(self) -> DecodeRun | None:
        with self._lock:
            return None if self.is_over.is_set() else next(self._waiting, None)
