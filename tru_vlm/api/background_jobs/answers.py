"""Jobs, their results and their events as clients read them."""

from __future__ import annotations

import json
from typing import Any

from tru_vlm.api.background_jobs.openapi import ItemResponse, JobAnswer, JobCounts, JobError, ResultLine
from tru_vlm.api.background_jobs.webhook_bodies import webhook_answer
from tru_vlm.api.event_stream import sse
from tru_vlm.jobs.store import counts_of
from tru_vlm.jobs.tables import Job, JobEvent, Result
from tru_vlm.jobs.webhook_store import WebhookState


def job_answer(job: Job, webhook: WebhookState | None, *, ttl_seconds: float) -> JobAnswer:
    """A job, and how far the message about its end has come."""
    counts = JobCounts(**counts_of(job))
    expires_at = job.ended_at + ttl_seconds if job.ended_at is not None and ttl_seconds else None
    return JobAnswer(
        id=job.id,
        kind=job.kind,
        status=job.status,
        counts=counts,
        progress=round((counts.succeeded + counts.failed) / counts.total, 4) if counts.total else 0.0,
        error=JobError(**job.error) if job.error else None,
        created_at=int(job.created_at),
        started_at=_whole(job.started_at),
        ended_at=_whole(job.ended_at),
        expires_at=_whole(expires_at),
        results_url=f"/v1/jobs/{job.id}/results",
        events_url=f"/v1/jobs/{job.id}/events",
        webhook=webhook_answer(webhook) if webhook else None,
    )


def result_body(job: Job, result: Result) -> dict[str, Any]:
    """What became of an item."""
    return ResultLine(
        id=f"{job.id}.{result.place}",
        index=result.place,
        custom_id=result.custom_id,
        status=result.status,
        response=ItemResponse(**result.outcome) if result.outcome else None,
    ).model_dump()


def result_line(job: Job, result: Result) -> bytes:
    """A line of the results."""
    return (json.dumps(result_body(job, result), ensure_ascii=False) + "\n").encode()


def event_chunk(job: Job, event: JobEvent) -> bytes:
    """An event that is not the last."""
    result = result_body(job, event.result) if event.result else {}
    return _chunk(event, json.dumps({**result, **event.data}, ensure_ascii=False))


def done_event(event: JobEvent, job: JobAnswer) -> bytes:
    """The last event."""
    return _chunk(event, json.dumps(job.model_dump(), ensure_ascii=False))


def _chunk(event: JobEvent, data: str) -> bytes:
    return f"id: {event.number}\n".encode() + sse(event.name, data)


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
