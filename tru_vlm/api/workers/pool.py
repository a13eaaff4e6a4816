"""The HTTP process's view of the workers: who is there, who gets the next request, what comes back.

It keeps the queue.  A worker holds at most as many requests as it has rows; the others wait here, in order, where
their position is known and leaving costs nothing.  Of a request it knows the id and the keys of its media, no more.

Requests in the background stand behind all others, and leave the last free row to them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path

from tru_vlm.api.workers.affinity import Affinity, AffinityStats
from tru_vlm.api.workers.engine_totals import EngineTotals
from tru_vlm.api.workers.link import Abort, Events, Hello, Submit, WorkerConnection, socket_path
from tru_vlm.api.workers.start_progress import StartProgress, note_path, read_note
from tru_vlm.engine.base import EngineEvent, EngineStats, FailEvent, FinishEvent
from tru_vlm.errors import UnavailableError
from tru_vlm.telemetry.metrics import Observer
from tru_vlm.types import WorkerRequest

logger = logging.getLogger(__name__)

_RECONNECT_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """How many requests go first; 0 means that a worker has it."""

    ahead: int


WorkerEvent = QueuePosition | EngineEvent


@dataclass(slots=True, eq=False)
class _Ticket:
    """One request on its way through: waiting here, or at a worker."""

    request: WorkerRequest
    is_background: bool = False
    events: asyncio.Queue[WorkerEvent] = field(default_factory=asyncio.Queue)
    last_token: float | None = None  # when its step ended


@dataclass(slots=True)
class _Worker:
    worker_id: int
    connection: WorkerConnection | None = None
    hello: Hello | None = None
    stats: EngineStats | None = None
    totals: EngineTotals = field(default_factory=EngineTotals)
    tickets: dict[str, _Ticket] = field(default_factory=dict)
    num_requests_total: int = 0
    restarts: int = 0
    kv_cache_tokens: int | None = None  # known as long as it was ready once


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker, for health.

    Attributes:
        worker_id: its number, from 0.
        is_ready: whether it takes requests.
        num_requests: what it has now.
        num_requests_total: what it was given so far, before restarts too.
        restarts: how often it died.
        start: how far its start is; None when it is ready.
        hello: who it is; None while it starts.
        stats: how its engine was when it last told; None while it starts.
        totals: what its engine has done, before restarts too.
    """

    worker_id: int
    is_ready: bool
    num_requests: int
    num_requests_total: int
    restarts: int
    start: StartProgress | None
    hello: Hello | None
    stats: EngineStats | None
    totals: EngineTotals


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Where the steps of workers are measured.

    Attributes:
        inter_token: seconds between two tokens of one request.
        batch_size: requests that got a token in a step.
    """

    inter_token: Observer
    batch_size: Observer


class WorkerPool:
    """All workers of this server.

    Args:
        socket_directory: where they listen.
        num_workers: how many there are.
        max_requests_per_worker: rows of a worker's batch.
        steps: where the steps of workers are measured.
    """

    def __init__(
        self, socket_directory: Path, num_workers: int, max_requests_per_worker: int, steps: StepMetrics
    ) -> None:
        self._directory = socket_directory
        self._workers = [_Worker(worker_id) for worker_id in range(num_workers)]
        self._affinity = Affinity(num_workers, max_requests_per_worker)
        self._max_requests_per_worker = max_requests_per_worker
        self._waiting: deque[_Ticket] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._met = asyncio.Event()
        self._steps = steps

    def start(self) -> None:
        """Connect to the workers, and again whenever one comes back."""
        self._tasks = [asyncio.create_task(self._follow(worker)) for worker in self._workers]

    async def close(self) -> None:
        """Close every connection; the workers abort what is left."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def num_waiting(self) -> int:
        """Requests that no worker has yet."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that a worker has."""
        return sum(len(worker.tickets) for worker in self._workers)

    @property
    def has_room_in_background(self) -> bool:
        """Whether a request in the background would not have to wait now."""
        return not self._waiting and self._has_spare_row()

    @property
    def kv_cache_tokens(self) -> int | None:
        """Tokens that every worker which has been ready could hold; None before the first is."""
        known = [worker.kv_cache_tokens for worker in self._workers if worker.kv_cache_tokens is not None]
        return min(known, default=None)

    @property
    def has_met(self) -> bool:
        """Whether a worker is ready, or has been."""
        return self._met.is_set()

    async def met(self) -> None:
        """Wait until a worker is ready, or has been."""
        await self._met.wait()

    def states(self) -> list[WorkerState]:
        """A look at each worker."""
        return [
            WorkerState(
                worker_id=w.worker_id,
                is_ready=w.connection is not None,
                num_requests=len(w.tickets),
                num_requests_total=w.num_requests_total,
                restarts=w.restarts,
                start=None if w.connection else read_note(note_path(self._directory, w.worker_id)),
                hello=w.hello,
                stats=w.stats,
                totals=w.totals,
            )
            for w in self._workers
        ]

    def affinity_stats(self) -> AffinityStats:
        """How often a request went where its video's caches are."""
        return self._affinity.stats()

    async def run(self, request: WorkerRequest, *, is_background: bool = False) -> AsyncGenerator[WorkerEvent, None]:
        """Queue a request and yield what becomes of it: positions, then the engine's events up to the last one.

        Closing the iterator early takes the request out of the queue, or aborts it at its worker.
        """
        ticket = _Ticket(request, is_background)
        place = self._line_up(ticket)
        self._dispatch()
        if ticket in self._waiting:
            self._tell_positions(from_place=place)
        try:
            while True:
                event = await ticket.events.get()
                yield event
                if isinstance(event, FinishEvent | FailEvent):
                    return
        finally:
            self._leave(ticket)

    def _line_up(self, ticket: _Ticket) -> int:
        """Put it behind all that go first; returns how many they are."""
        ahead = sum(ticket.is_background or not other.is_background for other in self._waiting)
        self._waiting.insert(ahead, ticket)
        return ahead

    def _leave(self, ticket: _Ticket) -> None:
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            self._tell_positions()
            return
        for worker in self._workers:
            if worker.tickets.pop(ticket.request.id, None) and worker.connection:
                worker.connection.send(Abort(ticket.request.id))
        self._dispatch()

    def _dispatch(self) -> None:
        """Give waiting requests, in order, to workers with a free row."""
        moved = False
        while self._waiting and (worker := self._worker_for(self._waiting[0])):
            ticket = self._waiting.popleft()
            assert worker.connection is not None  # noqa: S101 - _worker_for looks at connected ones
            worker.tickets[ticket.request.id] = ticket
            worker.num_requests_total += 1
            worker.connection.send(Submit(ticket.request))
            ticket.events.put_nowait(QueuePosition(0))
            moved = True
        if moved:
            self._tell_positions()

    def _worker_for(self, ticket: _Ticket) -> _Worker | None:
        if ticket.is_background and not self._has_spare_row():
            return None
        loads = self._loads()
        chosen = self._affinity.choose([media.content_key for media in ticket.request.media], loads)
        return None if chosen is None else self._workers[chosen]

    def _loads(self) -> dict[int, int]:
        return {worker.worker_id: len(worker.tickets) for worker in self._workers if worker.connection}

    def _has_spare_row(self) -> bool:
        """Whether a row is free, and another one stays free for those who wait; where there is but one, it may go."""
        loads = self._loads()
        num_rows = len(loads) * self._max_requests_per_worker
        return num_rows - sum(loads.values()) > (num_rows > 1)

    def _tell_positions(self, from_place: int = 0) -> None:
        for place, ticket in enumerate(self._waiting):
            if place >= from_place:
                ticket.events.put_nowait(QueuePosition(place + 1))

    async def _follow(self, worker: _Worker) -> None:
        """Stay connected to one worker for as long as this server lives."""
        path = socket_path(self._directory, worker.worker_id)
        while True:
            try:
                connection = await WorkerConnection.open(path)
            except OSError:
                await asyncio.sleep(_RECONNECT_SECONDS)
                continue
            try:
                await self._receive(worker, connection)
            except Exception:
                logger.exception("a message of worker %d cannot be handled; connecting again", worker.worker_id)
            finally:
                connection.close()
                worker.connection = None  # nothing may be sent on it any more, not even an abort
            self._lost(worker)

    async def _receive(self, worker: _Worker, connection: WorkerConnection) -> None:
        while (message := await connection.receive()) is not None:
            match message:
                case Hello():
                    worker.hello, worker.connection = message, connection
                    worker.kv_cache_tokens = message.stats.kv_cache_tokens
                    worker.stats = message.stats
                    worker.totals.update(message.pid, message.stats)
                    self._met.set()
                    self._dispatch()
                case Events():
                    worker.stats = message.stats
                    if worker.hello is not None:
                        worker.totals.update(worker.hello.pid, message.stats)
                    self._measure(worker, message)
                    self._deliver(worker, message)

    def _measure(self, worker: _Worker, message: Events) -> None:
        for ended_at, rows in message.steps:
            tickets = [worker.tickets[name] for name in rows if name in worker.tickets]
            for ticket in tickets:
                if ticket.last_token is not None:
                    self._steps.inter_token.observe(ended_at - ticket.last_token)
                ticket.last_token = ended_at
            if tickets:
                self._steps.batch_size.observe(len(tickets))

    def _deliver(self, worker: _Worker, message: Events) -> None:
        for event in message.events:
            if ticket := worker.tickets.get(event.request_id):
                ticket.events.put_nowait(event)
                if isinstance(event, FinishEvent | FailEvent):
                    del worker.tickets[event.request_id]
        self._dispatch()

    def _lost(self, worker: _Worker) -> None:
        """The worker is gone: what it held fails now; LitServe starts it again."""
        if worker.hello is None:
            return
        worker.hello, worker.stats = None, None
        worker.restarts += 1
        self._affinity.forget(worker.worker_id)
        error = UnavailableError(
            "The worker that held this request stopped and is being restarted; send the request again.",
            code="worker_died",
            retry_after_seconds=5.0,
        ).info()
        for request_id, ticket in worker.tickets.items():
            ticket.events.put_nowait(FailEvent(request_id, error))
        logger.error("worker %d is gone with %d requests", worker.worker_id, len(worker.tickets))
        worker.tickets.clear()
