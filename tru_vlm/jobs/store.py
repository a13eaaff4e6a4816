"""The store keeps jobs, their items and what happened to them.  It asks no question; what must not be lost is here.

Each change is one transaction, with the event that tells of it.  An item has an outcome or has none: which items are
being asked is written nowhere, so after ``kill -9`` at any moment those without one are asked again, and no other.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

from tru_vlm.database import Database
from tru_vlm.errors import ErrorInfo, InvalidRequestError, NotFoundError, OverloadedError
from tru_vlm.jobs.tables import (
    ACTIVE,
    KINDS,
    RESULT_COLUMNS,
    STATUSES,
    EventName,
    Item,
    Job,
    JobEvent,
    JobStatus,
    Kind,
    NewItem,
    Question,
    Result,
    item_of,
    job_of,
    result_of,
)
from tru_vlm.jobs.webhook_store import Webhook, announce, register, take_back

Clock = Callable[[], float]

_RETRY_AFTER_SECONDS = 30.0
_IS_ACTIVE = "status IN ('queued', 'running')"


def new_job_id() -> str:
    """An id that no job has had."""
    return f"job_{secrets.token_hex(16)}"


class JobStore:
    """For one event loop; several processes may share the file.

    Args:
        database: the jobs', with :data:`tru_vlm.jobs.tables.MIGRATIONS`; started and closed by its owner.
        max_queued_jobs: jobs that may be unfinished at once.
        clock: seconds since 1970.
    """

    def __init__(self, database: Database, *, max_queued_jobs: int, clock: Clock = time.time) -> None:
        self._database = database
        self._max_queued_jobs = max_queued_jobs
        self._clock = clock

    async def add(
        self,
        job_id: str,
        *,
        owner: str,
        kind: Kind,
        body: dict[str, Any],
        items: Sequence[NewItem],
        webhook: Webhook | None = None,
    ) -> Job:
        """Accept a job.  A job without items is to be prepared first.

        Args:
            job_id: a new one.
            owner: whose it is.
            kind: what it is.
            body: what it asks, beside its items.
            items: its questions.
            webhook: where its end is told.

        Raises:
            OverloadedError: too many are unfinished.
        """

        def add(connection: sqlite3.Connection) -> Job:
            self._check_room(connection)
            number = connection.execute(
                "INSERT INTO jobs (id, owner, kind, status, body, is_prepared, num_items, created_at) "
                "VALUES (?, ?, ?, 'queued', ?, ?, ?, ?)",
                (job_id, owner, kind, json.dumps(body), bool(items), len(items), self._clock()),
            ).lastrowid
            assert number is not None  # noqa: S101 - a row was inserted
            _add_items(connection, number, items)
            if webhook is not None:
                register(connection, number, webhook)
            _tell_status(connection, number, "queued")
            return _job(connection, number)

        return await self._database.run(add)

    async def check_room(self) -> None:
        """Whether another job would be accepted now.

        Raises:
            OverloadedError: too many are unfinished.
        """
        await self._database.read(self._check_room)

    async def get(self, job_id: str, owner: str) -> Job:
        """An owner's job.

        Raises:
            NotFoundError: there is none (any more).
        """
        return await self._database.read(lambda connection: _find(connection, job_id, owner))

    async def by_number(self, number: int) -> Job | None:
        """A job, whoever has it; None if it is gone."""

        def read(connection: sqlite3.Connection) -> Job | None:
            row = connection.execute("SELECT * FROM jobs WHERE number = ?", (number,)).fetchone()
            return job_of(row) if row else None

        return await self._database.read(read)

    async def page(
        self, owner: str, *, below: int | None = None, limit: int, status: JobStatus | None = None
    ) -> list[Job]:
        """An owner's jobs, the newest first, from below a :attr:`Job.number` on."""

        def read(connection: sqlite3.Connection) -> list[Job]:
            rows = connection.execute(
                "SELECT * FROM jobs WHERE owner = ? AND number < ? AND status = ifnull(?, status) "
                "ORDER BY number DESC LIMIT ?",
                (owner, below if below is not None else (1 << 63) - 1, status, limit),
            )
            return [job_of(row) for row in rows]

        return await self._database.read(read)

    async def active(self) -> list[Job]:
        """The jobs that have not ended, the oldest first."""

        def read(connection: sqlite3.Connection) -> list[Job]:
            rows = connection.execute(f"SELECT * FROM jobs WHERE {_IS_ACTIVE} ORDER BY number")  # noqa: S608 - our own
            return [job_of(row) for row in rows]

        return await self._database.read(read)

    async def counts(self) -> dict[tuple[Kind, JobStatus], int]:
        """Jobs by kind and status; those of which there is none, too."""
        query = "SELECT kind, status, count(*) FROM jobs GROUP BY kind, status"
        none = {(kind, status): 0 for kind in KINDS for status in STATUSES}
        return await self._database.read(
            lambda connection: none | {(kind, status): number for kind, status, number in connection.execute(query)}
        )

    async def ids_in_need_of_videos(self) -> set[str]:
        """The jobs that may (still) have something asked."""
        query = "SELECT id FROM jobs WHERE status != 'succeeded'"
        return await self._database.read(lambda connection: {row["id"] for row in connection.execute(query)})

    async def next_item(self, job: Job, *, but_for: Collection[int]) -> Item | None:
        """The next item to be asked, of the earliest stage that has any left; None if all of them are being asked.

        Args:
            job: whose.
            but_for: places that are being asked.
        """

        def read(connection: sqlite3.Connection) -> Item | None:
            row = connection.execute(
                "SELECT * FROM items WHERE job = :job AND status = 'queued' "
                "AND stage = (SELECT min(stage) FROM items WHERE job = :job AND status = 'queued') "
                "AND place NOT IN (SELECT value FROM json_each(:but_for)) ORDER BY place LIMIT 1",
                {"job": job.number, "but_for": json.dumps(list(but_for))},
            ).fetchone()
            return item_of(row) if row else None

        return await self._database.read(read)

    async def results(self, job: Job, *, after: int = -1, limit: int) -> list[Result]:
        """What became of the items that have ended, in order, from behind a place on."""

        def read(connection: sqlite3.Connection) -> list[Result]:
            rows = connection.execute(
                f"SELECT {RESULT_COLUMNS} FROM items "  # noqa: S608 - our own
                "WHERE job = ? AND place > ? AND status != 'queued' ORDER BY place LIMIT ?",
                (job.number, after, limit),
            )
            return [result_of(row) for row in rows]

        return await self._database.read(read)

    async def questions(self, job: Job, *, limit: int) -> list[Question]:
        """What the first items ask, and what became of them; their bodies, which may be large, are not read whole."""

        def read(connection: sqlite3.Connection) -> list[Question]:
            rows = connection.execute(
                "SELECT json_extract(body, '$.prompt') AS prompt, json_extract(body, '$.video_id') AS video_id, "
                "status, outcome FROM items WHERE job = ? ORDER BY place LIMIT ?",
                (job.number, limit),
            )
            return [
                Question(
                    prompt=row["prompt"],
                    video_id=row["video_id"],
                    status=row["status"],
                    outcome=json.loads(row["outcome"]) if row["outcome"] else None,
                )
                for row in rows
            ]

        return await self._database.read(read)

    async def events(self, job: Job, *, after: int, limit: int) -> list[JobEvent]:
        """What happened, from behind an event's number on."""

        def read(connection: sqlite3.Connection) -> list[JobEvent]:
            rows = connection.execute(
                f"SELECT number, name, data, {RESULT_COLUMNS} FROM events "  # noqa: S608 - our own
                "LEFT JOIN items ON items.job = events.job AND items.place = events.place "
                "WHERE events.job = ? AND number > ? ORDER BY number LIMIT ?",
                (job.number, after, limit),
            )
            return [
                JobEvent(
                    row["number"],
                    row["name"],
                    json.loads(row["data"]),
                    result_of(row) if row["place"] is not None else None,
                )
                for row in rows
            ]

        return await self._database.read(read)

    async def begin(self, number: int) -> bool:
        """The job is being worked on; returns whether it (still) is to be."""

        def begin(connection: sqlite3.Connection) -> bool:
            if connection.execute(
                "UPDATE jobs SET status = 'running', started_at = ifnull(started_at, ?) "
                "WHERE number = ? AND status = 'queued'",
                (self._clock(), number),
            ).rowcount:
                _tell_status(connection, number, "running")
            return _is_active(connection, number)

        return await self._database.run(begin)

    async def prepare(self, number: int, body: dict[str, Any], items: Sequence[NewItem]) -> None:
        """What a job's items are is known now; nothing happens to a job that has ended or knows them already."""

        def prepare(connection: sqlite3.Connection) -> None:
            if connection.execute(
                f"UPDATE jobs SET is_prepared = 1, body = ?, num_items = ? "  # noqa: S608 - our own
                f"WHERE number = ? AND NOT is_prepared AND {_IS_ACTIVE}",
                (json.dumps(body), len(items), number),
            ).rowcount:
                _add_items(connection, number, items)
                _tell_status(connection, number, "running")

        await self._database.run(prepare)

    async def finish_item(
        self, item: Item, status: Literal["succeeded", "failed"], outcome: dict[str, Any]
    ) -> JobStatus | None:
        """Write down what became of an item, and with the last one the end of the job.

        Returns:
            The job's status; None, with nothing changed, if the job or the item has ended before.
        """

        def finish(connection: sqlite3.Connection) -> JobStatus | None:
            if not _is_active(connection, item.job):
                return None
            if not connection.execute(
                "UPDATE items SET status = ?, outcome = ?, ended_at = ? "
                "WHERE job = ? AND place = ? AND status = 'queued'",
                (status, json.dumps(outcome, ensure_ascii=False), self._clock(), item.job, item.place),
            ).rowcount:
                return None
            connection.execute(
                f"UPDATE jobs SET num_{status} = num_{status} + 1 WHERE number = ?",  # noqa: S608 - one of two words
                (item.job,),
            )
            job = _job(connection, item.job)
            _tell(connection, item.job, "item", {"counts": counts_of(job)}, place=item.place)
            return self._settle(connection, job, item.stage)

        return await self._database.run(finish)

    async def fail(self, number: int, error: ErrorInfo) -> None:
        """End a job that cannot be worked on; nothing happens to one that has ended."""

        def fail(connection: sqlite3.Connection) -> None:
            if _is_active(connection, number):
                self._end(connection, number, "failed", error_body(error))

        await self._database.run(fail)

    async def cancel(self, job_id: str, owner: str) -> Job:
        """End a job that has not ended.  What its items have got so far stays.

        Returns:
            The job as it is now.

        Raises:
            NotFoundError: there is none (any more).
        """

        def cancel(connection: sqlite3.Connection) -> Job:
            job = _find(connection, job_id, owner)
            if job.is_active:
                self._end(connection, job.number, "cancelled", None)
            return _job(connection, job.number)

        return await self._database.run(cancel)

    async def resume(self, job_id: str, owner: str) -> Job:
        """Go on with a job that was cancelled or failed: everything that was not answered is asked again.

        Raises:
            NotFoundError: there is none (any more).
            InvalidRequestError: it has not ended, or succeeded.
            OverloadedError: too many are unfinished.
        """

        def resume(connection: sqlite3.Connection) -> Job:
            job = _find(connection, job_id, owner)
            if job.status not in ("cancelled", "failed"):
                text = f"The job is {job.status}; only one that was cancelled or failed can be resumed."
                raise InvalidRequestError(text, param="job_id", code="job_not_resumable")
            self._check_room(connection)
            connection.execute(
                "UPDATE items SET status = 'queued', outcome = NULL, ended_at = NULL "
                "WHERE job = ? AND status = 'failed'",
                (job.number,),
            )
            connection.execute(
                "UPDATE jobs SET status = 'queued', num_failed = 0, error = NULL, ended_at = NULL WHERE number = ?",
                (job.number,),
            )
            # The stream of events has one last event: those of the end that was none, and of answers that will be
            # given again, are taken back.  Numbers are not used twice.
            connection.execute(
                "DELETE FROM events WHERE job = :job AND (name = 'done' OR (name = 'item' AND place IN "
                "(SELECT place FROM items WHERE job = :job AND status = 'queued')))",
                {"job": job.number},
            )
            take_back(connection, job.number)
            _tell_status(connection, job.number, "queued")
            return _job(connection, job.number)

        return await self._database.run(resume)

    async def delete(self, job_id: str, owner: str) -> None:
        """Remove a job that has ended, and all that is known of it.

        Raises:
            NotFoundError: there is none (any more).
            InvalidRequestError: it has not ended.
        """

        def delete(connection: sqlite3.Connection) -> None:
            job = _find(connection, job_id, owner)
            if job.is_active:
                raise InvalidRequestError(f"The job is {job.status}.", param="job_id", code="job_active")
            connection.execute("DELETE FROM jobs WHERE number = ?", (job.number,))

        await self._database.free(delete)

    async def expire(self, ended_before: float) -> int:
        """Remove the jobs that ended before a time; returns how many."""
        return await self._database.free(
            lambda connection: connection.execute("DELETE FROM jobs WHERE ended_at < ?", (ended_before,)).rowcount
        )

    # Below: inside a transaction.

    def _check_room(self, connection: sqlite3.Connection) -> None:
        (number,) = connection.execute(f"SELECT count(*) FROM jobs WHERE {_IS_ACTIVE}").fetchone()  # noqa: S608 - our own
        if number >= self._max_queued_jobs:
            raise OverloadedError(
                f"{number} jobs are not finished yet, as many as this server takes; try again when one has ended.",
                code="too_many_jobs",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )

    def _settle(self, connection: sqlite3.Connection, job: Job, stage: int) -> JobStatus:
        """End the job, if nothing of it is left to be asked.  A stage with failures is the last one."""
        left = "SELECT count(*) FROM items WHERE job = ? AND status = 'queued'"
        (num_left,) = connection.execute(left, (job.number,)).fetchone()
        (num_left_in_stage,) = connection.execute(f"{left} AND stage <= ?", (job.number, stage)).fetchone()
        if num_left_in_stage or (num_left and not job.num_failed):
            return job.status
        if not job.num_failed:
            self._end(connection, job.number, "succeeded", None)
            return "succeeded"
        text = f"{job.num_failed} of the job's {job.num_items} items failed; its results tell why."
        error = {"type": "server_error", "code": "items_failed", "message": text, "param": None}
        self._end(connection, job.number, "failed", error)
        return "failed"

    def _end(
        self, connection: sqlite3.Connection, number: int, status: JobStatus, error: dict[str, Any] | None
    ) -> None:
        now = self._clock()
        connection.execute(
            "UPDATE jobs SET status = ?, error = ?, ended_at = ? WHERE number = ?",
            (status, json.dumps(error) if error else None, now, number),
        )
        announce(connection, number, now)
        _tell(connection, number, "done", {})


def counts_of(job: Job) -> dict[str, int]:
    """How many items there are, and what became of them."""
    return {
        "total": job.num_items,
        "succeeded": job.num_succeeded,
        "failed": job.num_failed,
        "remaining": job.num_items - job.num_succeeded - job.num_failed,
    }


def error_body(error: ErrorInfo) -> dict[str, Any]:
    """An error as a job keeps it."""
    return {"type": error.type, "code": error.code, "message": error.message, "param": error.param}


def _add_items(connection: sqlite3.Connection, job: int, items: Sequence[NewItem]) -> None:
    connection.executemany(
        "INSERT INTO items (job, place, stage, custom_id, route, body) VALUES (?, ?, ?, ?, ?, ?)",
        (
            (job, place, item.stage, item.custom_id, item.route, json.dumps(item.body, ensure_ascii=False))
            for place, item in enumerate(items)
        ),
    )


def _tell_status(connection: sqlite3.Connection, job: int, status: JobStatus) -> None:
    _tell(connection, job, "status", {"status": status, "counts": counts_of(_job(connection, job))})


def _tell(
    connection: sqlite3.Connection, job: int, name: EventName, data: dict[str, Any], *, place: int | None = None
) -> None:
    connection.execute("UPDATE jobs SET num_events = num_events + 1 WHERE number = ?", (job,))
    connection.execute(
        "INSERT INTO events SELECT number, num_events, ?, ?, ? FROM jobs WHERE number = ?",
        (name, place, json.dumps(data), job),
    )


def _is_active(connection: sqlite3.Connection, number: int) -> bool:
    row = connection.execute("SELECT status FROM jobs WHERE number = ?", (number,)).fetchone()
    return row is not None and row["status"] in ACTIVE


def _job(connection: sqlite3.Connection, number: int) -> Job:
    return job_of(connection.execute("SELECT * FROM jobs WHERE number = ?", (number,)).fetchone())


def _find(connection: sqlite3.Connection, job_id: str, owner: str) -> Job:
    row = connection.execute("SELECT * FROM jobs WHERE id = ? AND owner = ?", (job_id, owner)).fetchone()
    if row is None:
        text = f"There is no job {job_id[:80]!r} here; it may have expired or been deleted."
        raise NotFoundError(text, param="job_id", code="job_not_found")
    return job_of(row)
