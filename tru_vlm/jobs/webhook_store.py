"""Webhooks' rows: where a job's end is told, and how far that has come.  It sends nothing, and knows no schedule.

A job's end and the message about it are one transaction (:func:`announce`), so a message is neither lost nor made up
when the process dies.  A secret leaves this module in one place only, a message that is due.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tru_vlm.database import Database

WebhookStatus = Literal["waiting", "pending", "delivered", "failed"]
"""The job has not ended; it is being told (again); it was told; it will not be told any more."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where a job's end is to be told.

    Attributes:
        url: goes through the guard at each attempt.
        secret: the key of the signature, ``whsec_`` and base64.
    """

    url: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class WebhookState:
    """How far it has come, for those who ask.

    Attributes:
        url: as it was given.
        status: see :data:`WebhookStatus`.
        num_attempts: so far.
        last_attempt_at, next_attempt_at: seconds since 1970.
        status_code: what the last attempt was answered with; None where nothing was answered.
        error: why the last attempt failed.
    """

    url: str
    status: WebhookStatus
    num_attempts: int
    last_attempt_at: float | None
    next_attempt_at: float | None
    status_code: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Message:
    """What is to be sent.

    Attributes:
        id: of the event; the same at each attempt.
        job: the job's number.
        owner: whose job it is.
        webhook: where to.
        num_attempts: that have failed.
    """

    id: str
    job: int
    owner: str
    webhook: Webhook
    num_attempts: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of sending a message.

    Attributes:
        status_code: the receiver's; None where it did not answer.
        error: why it failed; None when it was taken.
        retry_after_seconds: how long the receiver asks to be left alone.
        is_last: whether the receiver wants no more.
    """

    status_code: int | None
    error: str | None
    retry_after_seconds: float = 0.0
    is_last: bool = False


class WebhookStore:
    """For one event loop.

    Args:
        database: the jobs'.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def states(self, jobs: Collection[int]) -> dict[int, WebhookState]:
        """Of jobs by their numbers; those that have no webhook are left out."""

        def read(connection: sqlite3.Connection) -> dict[int, WebhookState]:
            rows = connection.execute(
                "SELECT job, url, status, num_attempts, last_attempt_at, next_attempt_at, status_code, error "
                "FROM webhooks WHERE job IN (SELECT value FROM json_each(?))",
                (json.dumps(list(jobs)),),
            )
            return {row["job"]: WebhookState(*tuple(row)[1:]) for row in rows}

        return await self._database.read(read)

    async def due(self, now: float, *, but_for: Sequence[Message], max_of_owner: int) -> Message | None:
        """The message that has been due for longest, if there is any.

        Args:
            now: seconds since 1970.
            but_for: messages that are being sent.
            max_of_owner: an owner who has as many among those must wait.
        """
        owners = [message.owner for message in but_for]
        busy = [owner for owner in set(owners) if owners.count(owner) >= max_of_owner]

        def read(connection: sqlite3.Connection) -> Message | None:
            row = connection.execute(
                "SELECT webhooks.*, owner FROM webhooks JOIN jobs ON jobs.number = webhooks.job "
                "WHERE next_attempt_at <= :now AND job NOT IN (SELECT value FROM json_each(:sending)) "
                "AND owner NOT IN (SELECT value FROM json_each(:busy)) ORDER BY next_attempt_at LIMIT 1",
                {
                    "now": now,
                    "sending": json.dumps([message.job for message in but_for]),
                    "busy": json.dumps(busy),
                },
            ).fetchone()
            if row is None:
                return None
            webhook = Webhook(row["url"], row["secret"])
            return Message(row["message_id"], row["job"], row["owner"], webhook, row["num_attempts"])

        return await self._database.read(read)

    async def next_due(self) -> float | None:
        """When the next message is due, in seconds since 1970."""
        query = "SELECT min(next_attempt_at) FROM webhooks WHERE next_attempt_at IS NOT NULL"
        return await self._database.read(lambda connection: connection.execute(query).fetchone()[0])

    async def record(
        self, message: Message, attempt: Attempt, *, now: float, next_attempt_at: float | None
    ) -> WebhookStatus | None:
        """Write down what came of an attempt.

        Args:
            message: what was sent.
            attempt: what came of it.
            now: seconds since 1970.
            next_attempt_at: when it is tried again if it failed; None for never.

        Returns:
            How far it has come; None, with nothing changed, if the job has gone on or away meanwhile.
        """
        status: WebhookStatus = "delivered" if attempt.error is None else "pending" if next_attempt_at else "failed"

        def record(connection: sqlite3.Connection) -> WebhookStatus | None:
            changed = connection.execute(
                "UPDATE webhooks SET status = ?, num_attempts = num_attempts + 1, last_attempt_at = ?, "
                "next_attempt_at = ?, status_code = ?, error = ? WHERE job = ? AND message_id = ?",
                (
                    status,
                    now,
                    next_attempt_at if status == "pending" else None,
                    attempt.status_code,
                    attempt.error,
                    message.job,
                    message.id,
                ),
            ).rowcount
            return status if changed else None

        return await self._database.run(record)


# Inside a transaction of the jobs' store:


def register(connection: sqlite3.Connection, job: int, webhook: Webhook) -> None:
    """A job's end is to be told."""
    connection.execute("INSERT INTO webhooks (job, url, secret) VALUES (?, ?, ?)", (job, webhook.url, webhook.secret))


def announce(connection: sqlite3.Connection, job: int, now: float) -> None:
    """A job has ended; nothing happens where nobody wants to know."""
    connection.execute(
        "UPDATE webhooks SET status = 'pending', message_id = ?, next_attempt_at = ? WHERE job = ?",
        (f"msg_{secrets.token_hex(16)}", now, job),
    )


def take_back(connection: sqlite3.Connection, job: int) -> None:
    """A job goes on: its end, if it has not been told yet, is none; its next end is another message."""
    connection.execute(
        "UPDATE webhooks SET status = 'waiting', message_id = NULL, num_attempts = 0, last_attempt_at = NULL, "
        "next_attempt_at = NULL, status_code = NULL, error = NULL WHERE job = ?",
        (job,),
    )
