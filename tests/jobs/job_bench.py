"""A store and a runner in a folder, with work that the test decides about."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tru_vlm.database import Database
from tru_vlm.intake.spool import Spool
from tru_vlm.jobs import tables
from tru_vlm.jobs.bell import Bell
from tru_vlm.jobs.files import JobFiles
from tru_vlm.jobs.process_lock import ProcessLock
from tru_vlm.jobs.runner import JobRunner, Reply
from tru_vlm.jobs.store import JobStore, new_job_id
from tru_vlm.jobs.tables import Item, Job, NewItem

Answer = Callable[[Item], Awaitable[Reply]]


def ok(text: str = "yes") -> Reply:
    return Reply(200, "req-1", {"text": text})


def error(status: int) -> Reply:
    return Reply(status, "req-1", {"error": {"code": "no"}}, 0.0)


async def always_ok(item: Item) -> Reply:
    return ok()


def questions(number: int, stage: int = 0) -> list[NewItem]:
    return [NewItem(f"q{n}", "/v1/inference/url", {"number": n}, stage) for n in range(number)]


@dataclass
class Work:
    """Answers as it is told to, and counts."""

    answer: Answer = always_ok
    prepared: Callable[[Job], Awaitable[tuple[dict[str, Any], Sequence[NewItem]]]] | None = None
    asked: Counter[str] = field(default_factory=Counter)
    at_once: int = 0
    most_at_once: int = 0

    async def ask(self, job: Job, item: Item) -> Reply:
        self.asked[f"{job.number}.{item.place}"] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self.answer(item)
        finally:
            self.at_once -= 1

    async def prepare(self, job: Job) -> tuple[dict[str, Any], Sequence[NewItem]]:
        assert self.prepared is not None
        return await self.prepared(job)


@dataclass
class Bench:
    """A store, and runners over it."""

    folder: Path
    store: JobStore
    files: JobFiles
    spool: Spool
    database: Database
    now: list[float]

    async def add(self, items: Sequence[NewItem], *, owner: str = "public") -> Job:
        return await self.store.add(new_job_id(), owner=owner, kind="batch", body={}, items=items)

    async def now_of(self, job: Job) -> Job:
        found = await self.store.by_number(job.number)
        assert found is not None
        return found

    async def ended(self, job: Job) -> Job:
        async with asyncio.timeout(20):
            while (found := await self.now_of(job)).is_active:  # noqa: ASYNC110 - rows have no event
                await asyncio.sleep(0.005)
        return found

    @contextlib.asynccontextmanager
    async def running(self, work: Work, *, concurrency: int = 2) -> AsyncIterator[JobRunner]:
        runner = JobRunner(
            self.store,
            self.files,
            work,
            lock=ProcessLock(self.folder / "jobs.lock"),
            bell=Bell(),
            concurrency=concurrency,
            ttl_seconds=0,
        )
        runner.start()
        try:
            yield runner
        finally:
            await runner.close()


@contextlib.asynccontextmanager
async def open_bench(folder: Path, *, max_queued_jobs: int = 100) -> AsyncIterator[Bench]:
    now = [1_000_000.0]
    database = Database(folder / "jobs.sqlite3", tables.MIGRATIONS)
    spool = Spool(folder / "spool", 1 << 30, 0)
    store = JobStore(database, max_queued_jobs=max_queued_jobs, clock=lambda: now[0])
    await database.start()
    try:
        yield Bench(folder, store, JobFiles(folder / "videos", spool), spool, database, now)
    finally:
        await database.close()
        await spool.close()
