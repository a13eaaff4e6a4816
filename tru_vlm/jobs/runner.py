"""The runner has jobs' items asked, a few at a time.  It knows neither models nor HTTP; the store knows what is left.

Jobs take turns, so that a small one does not wait for a large one.  Of several processes on one folder, one runs jobs:
a server that was killed and started again waits until nothing of the old one is left.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from tru_vlm.errors import InternalError, TruError, UnavailableError
from tru_vlm.jobs.bell import Bell
from tru_vlm.jobs.files import JobFiles
from tru_vlm.jobs.process_lock import ProcessLock
from tru_vlm.jobs.store import JobStore
from tru_vlm.jobs.tables import Item, Job, Kind, NewItem
from tru_vlm.jobs.watch import LOOK_SECONDS, Watch

logger = logging.getLogger(__name__)

T = TypeVar("T")
Outcome = Literal["succeeded", "failed"]

MAX_ATTEMPTS = 5
"""How often something is tried that fails for a reason that may pass; being busy does not count."""

_OK, _BUSY = 200, 429
_TEMPORARY = frozenset({_BUSY, 503, 504})
_FIRST_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.5, 30.0
_TIDY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What was answered to an item.

    Attributes:
        status_code: as over HTTP.
        request_id: of the last try.
        body: the answer, or the error.
        retry_after_seconds: when to try again.
    """

    status_code: int
    request_id: str
    body: dict[str, Any]
    retry_after_seconds: float | None = None

    @property
    def is_temporary(self) -> bool:
        """Whether it may be another one, a little later."""
        return self.status_code in _TEMPORARY


class JobWork(Protocol):
    """What a runner has done for it."""

    async def ask(self, job: Job, item: Item) -> Reply:
        """Ask once.  Cancelling stops it and frees what it held."""
        ...

    async def prepare(self, job: Job) -> tuple[dict[str, Any], Sequence[NewItem]]:
        """A job's body and items, which are not known yet; may be done again after a crash.

        Raises:
            TruError: the job cannot be worked on.
        """
        ...


class JobRunner:
    """One per process.

    Args:
        store: the jobs.
        files: their videos.
        work: does it.
        lock: who has it runs the jobs.
        bell: is rung when something was written down.
        concurrency: items asked at once.
        ttl_seconds: how long a job is kept after its end; 0 for ever.
        is_stopping: whether nothing new may be begun.
        count: is told of each item that has ended, by the kind of its job, and how.
    """

    def __init__(
        self,
        store: JobStore,
        files: JobFiles,
        work: JobWork,
        *,
        lock: ProcessLock,
        bell: Bell,
        concurrency: int,
        ttl_seconds: float,
        is_stopping: Callable[[], bool] = lambda: False,
        count: Callable[[Kind, Outcome], None] = lambda _kind, _outcome: None,
    ) -> None:
        self._store = store
        self._files = files
        self._work = work
        self._bell = bell
        self._watch = Watch("jobs", self._look, lock=lock, bell=bell)
        self._concurrency = concurrency
        self._ttl_seconds = ttl_seconds
        self._is_stopping = is_stopping
        self._count = count
        self._running: dict[tuple[int, int | None], asyncio.Task[None]] = {}
        self._served: dict[int, int] = {}  # when each job had its last turn, in turns
        self._num_turns = 0
        self._tidied = 0.0

    @property
    def num_running(self) -> int:
        """Items that are being asked."""
        return len(self._running)

    def start(self) -> None:
        """Begin, once no other process runs jobs."""
        self._watch.start()

    async def close(self) -> None:
        """Stop; what is being asked is asked again by the next process."""
        await self._watch.close(self._running.values())

    async def _look(self) -> float:
        """Stop what is to be done no more, begin what is to be done, remove what is old."""
        active = {job.number: job for job in await self._store.active()}
        for (number, _), task in self._running.items():
            if number not in active and not task.cancelling():
                task.cancel()
        while len(self._running) < self._concurrency and not self._is_stopping():
            if not await self._begin_one(active):
                break
        if time.monotonic() > self._tidied + _TIDY_SECONDS:
            self._tidied = time.monotonic()
            if self._ttl_seconds:
                await self._store.expire(time.time() - self._ttl_seconds)
            await self._files.sweep(await self._store.ids_in_need_of_videos())
        return LOOK_SECONDS

    async def _begin_one(self, active: dict[int, Job]) -> bool:
        """Begin the next thing of the job that has waited longest for its turn; returns whether there was any."""
        self._served = {number: turn for number, turn in self._served.items() if number in active}
        for job in sorted(active.values(), key=lambda job: (self._served.get(job.number, 0), job.number)):
            places = {place for number, place in self._running if number == job.number}
            if not job.is_prepared:
                if None in places:
                    continue
                self._spawn(job, None)
                return True
            item = await self._store.next_item(job, but_for=[place for place in places if place is not None])
            if item is not None:
                self._spawn(job, item)
                return True
        return False

    def _spawn(self, job: Job, item: Item | None) -> None:
        self._num_turns += 1
        self._served[job.number] = self._num_turns
        key = (job.number, item.place if item else None)
        task = asyncio.create_task(self._do(job, item), name=f"{job.id} {key[1]}")
        self._running[key] = task

        def ended(_: asyncio.Task[None]) -> None:
            del self._running[key]
            self._bell.ring()

        task.add_done_callback(ended)

    async def _do(self, job: Job, item: Item | None) -> None:
        """One item, or the preparation, to its end; what cannot be written down now is written down later."""
        if job.status == "queued" and not await _written(partial(self._store.begin, job.number)):
            return
        self._bell.ring()
        if item is None:
            await self._prepare(job)
            return
        reply = await self._reply(job, item)
        outcome = {"status_code": reply.status_code, "request_id": reply.request_id, "body": reply.body}
        result: Outcome = "succeeded" if reply.status_code == _OK else "failed"
        status = await _written(partial(self._store.finish_item, item, result, outcome))
        if status is not None:
            self._count(job.kind, result)
        if status == "succeeded":
            await self._files.remove(job.id)

    async def _reply(self, job: Job, item: Item) -> Reply:
        num_failures = num_tries = 0
        while True:
            reply = await self._ask(job, item)
            if not reply.is_temporary:
                return reply
            num_failures += reply.status_code != _BUSY
            if num_failures == MAX_ATTEMPTS:
                return reply
            num_tries += 1
            await asyncio.sleep(_backoff(num_tries, reply.retry_after_seconds))

    async def _ask(self, job: Job, item: Item) -> Reply:
        try:
            return await self._work.ask(job, item)
        except TruError as error:
            info = error.info()
        except Exception:
            logger.exception("item %d of %s failed", item.place, job.id)
            info = InternalError().info()
        body = {"error": {"type": info.type, "code": info.code, "message": info.message, "param": info.param}}
        return Reply(info.status, "", body, info.retry_after_seconds)

    async def _prepare(self, job: Job) -> None:
        num_failures = num_tries = 0
        while True:
            try:
                body, items = await self._work.prepare(job)
                await self._store.prepare(job.number, body, items)
            except TruError as error:
                info = error.info()
            except Exception:
                logger.exception("%s cannot be prepared", job.id)
                info = InternalError().info()
            else:
                return
            num_failures += info.status != _BUSY
            if info.status not in _TEMPORARY or num_failures == MAX_ATTEMPTS:
                await _written(partial(self._store.fail, job.number, info))
                return
            num_tries += 1
            await asyncio.sleep(_backoff(num_tries, info.retry_after_seconds))


async def _written(write: Callable[[], Awaitable[T]]) -> T:
    """Write something down, now or as soon as it can be."""
    while True:
        try:
            return await write()
        except UnavailableError as error:
            logger.warning("jobs wait: %s", error.message)
            await asyncio.sleep(LOOK_SECONDS)


def _backoff(num_tries: int, retry_after_seconds: float | None) -> float:
    seconds = min(_MAX_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2.0 ** min(num_tries - 1, 10))
    return max(seconds, min(retry_after_seconds or 0.0, _MAX_BACKOFF_SECONDS)) * random.uniform(0.8, 1.2)  # noqa: S311
