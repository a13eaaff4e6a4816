"""The jobs' tables, and what a row of them is.  It knows no rules about what may follow what."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal["batch", "long_video"]
JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
ItemStatus = Literal["queued", "succeeded", "failed"]
EventName = Literal["status", "item", "done"]

ACTIVE: tuple[JobStatus, ...] = ("queued", "running")
KINDS: tuple[Kind, ...] = get_args(Kind)
STATUSES: tuple[JobStatus, ...] = get_args(JobStatus)

MIGRATIONS = (
    """
    CREATE TABLE jobs (
      number INTEGER PRIMARY KEY AUTOINCREMENT,
      id TEXT NOT NULL UNIQUE,
      owner TEXT NOT NULL,
      kind TEXT NOT NULL,
      status TEXT NOT NULL,
      body TEXT NOT NULL,
      is_prepared INTEGER NOT NULL,
      num_items INTEGER NOT NULL,
      num_succeeded INTEGER NOT NULL DEFAULT 0,
      num_failed INTEGER NOT NULL DEFAULT 0,
      num_events INTEGER NOT NULL DEFAULT 0,
      error TEXT,
      created_at REAL NOT NULL,
      started_at REAL,
      ended_at REAL
    );
    CREATE INDEX jobs_by_owner ON jobs (owner, number);
    CREATE INDEX jobs_by_status ON jobs (status, number);
    CREATE TABLE items (
      job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
      place INTEGER NOT NULL,
      stage INTEGER NOT NULL,
      custom_id TEXT,
      route TEXT NOT NULL,
      body TEXT NOT NULL,
      status TEXT NOT NULL DEFAULT 'queued',
      outcome TEXT,
      ended_at REAL,
      PRIMARY KEY (job, place)
    );
    CREATE INDEX items_by_status ON items (job, status, stage, place);
    CREATE TABLE events (
      job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
      number INTEGER NOT NULL,
      name TEXT NOT NULL,
      place INTEGER,
      data TEXT NOT NULL,
      PRIMARY KEY (job, number)
    );
    """,
    """
    CREATE TABLE webhooks (
      job INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
      url TEXT NOT NULL,
      secret TEXT NOT NULL,
      status TEXT NOT NULL DEFAULT 'waiting',
      message_id TEXT,
      num_attempts INTEGER NOT NULL DEFAULT 0,
      last_attempt_at REAL,
      next_attempt_at REAL,
      status_code INTEGER,
      error TEXT
    );
    CREATE INDEX webhooks_due ON webhooks (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
    """,
)


@dataclass(frozen=True, slots=True)
class Job:
    """A job.

    Attributes:
        number: grows with every job; a place in the list.
        id: as clients know it.
        owner: whose it is.
        kind: many questions, or one long video.
        status: where it is.
        body: what a long video's job asks; empty for a batch.
        is_prepared: whether its items are known.
        num_items, num_succeeded, num_failed: of its items.
        num_events: events so far.
        error: why it failed.
        created_at, started_at, ended_at: seconds since 1970.
    """

    number: int
    id: str
    owner: str
    kind: Kind
    status: JobStatus
    body: dict[str, Any]
    is_prepared: bool
    num_items: int
    num_succeeded: int
    num_failed: int
    num_events: int
    error: dict[str, Any] | None
    created_at: float
    started_at: float | None
    ended_at: float | None

    @property
    def is_active(self) -> bool:
        """Whether it has not ended."""
        return self.status in ACTIVE


@dataclass(frozen=True, slots=True)
class NewItem:
    """A question that is to be asked.

    Attributes:
        custom_id: the client's name for it.
        route: whose body it is: of ``/v1/inference/url`` or of ``/v1/chat/completions``.
        body: the request.
        stage: items of a stage are asked when all of the stages before have been answered.
    """

    custom_id: str | None
    route: str
    body: dict[str, Any]
    stage: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """A question of a job.

    Attributes:
        job: the job's number.
        place: its own, from 0.
        stage, custom_id, route, body: as in :class:`NewItem`.
    """

    job: int
    place: int
    stage: int
    custom_id: str | None
    route: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an item.

    Attributes:
        place, stage, custom_id: the item's.
        status: whether it was answered.
        outcome: the answer, or the error; None where the item is to be asked (again).
    """

    place: int
    stage: int
    custom_id: str | None
    status: ItemStatus
    outcome: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Question:
    """An item as people read it.

    Attributes:
        prompt, video_id: what is asked about which kept video; None where the body says it otherwise.
        status: whether it was answered.
        outcome: as a :class:`Result` has it.
    """

    prompt: str | None
    video_id: str | None
    status: ItemStatus
    outcome: dict[str, Any] | None

    @property
    def text(self) -> str:
        """The answer's words; empty where there is none."""
        return str(self._body("succeeded").get("text", ""))

    @property
    def error(self) -> str:
        """Why it was not answered; empty where it was, or is still to be."""
        return str(self._body("failed").get("error", {}).get("message", ""))

    def _body(self, status: ItemStatus) -> dict[str, Any]:
        return self.outcome["body"] if self.outcome and self.status == status else {}


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job.

    Attributes:
        number: from 1, in order.
        name: what happened.
        data: about it.
        result: of the item that ended.
    """

    number: int
    name: EventName
    data: dict[str, Any]
    result: Result | None


def job_of(row: sqlite3.Row) -> Job:
    """A row of ``jobs``."""
    values = dict(row)
    values["body"] = json.loads(values["body"])
    values["error"] = json.loads(values["error"]) if values["error"] else None
    values["is_prepared"] = bool(values["is_prepared"])
    return Job(**values)


def item_of(row: sqlite3.Row) -> Item:
    """A row of ``items``."""
    return Item(
        job=row["job"],
        place=row["place"],
        stage=row["stage"],
        custom_id=row["custom_id"],
        route=row["route"],
        body=json.loads(row["body"]),
    )


RESULT_COLUMNS = "items.place, stage, custom_id, items.status, outcome"
"""What :func:`result_of` reads; an item's body, which may be large, is not among it."""


def result_of(row: sqlite3.Row) -> Result:
    """The columns :data:`RESULT_COLUMNS` of a row."""
    return Result(
        place=row["place"],
        stage=row["stage"],
        custom_id=row["custom_id"],
        status=row["status"],
        outcome=json.loads(row["outcome"]) if row["outcome"] else None,
    )
