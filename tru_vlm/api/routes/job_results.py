"""What comes out of a job: results as JSON lines, events as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tru_vlm.api.background_jobs.answers import done_event, event_chunk, result_line
from tru_vlm.api.background_jobs.openapi import EVENTS_RESPONSES, RESULTS_RESPONSES, JobIdPath
from tru_vlm.api.background_jobs.service import JobService
from tru_vlm.api.request_body import owner_of
from tru_vlm.jobs.tables import Job

_KEEP_ALIVE_LOOKS = 15


def build_router(jobs: JobService) -> APIRouter:
    """The routes over ``jobs``."""
    router = APIRouter(tags=["jobs"])

    @router.get("/v1/jobs/{job_id}/results", response_class=Response, responses=RESULTS_RESPONSES)
    async def results(job_id: JobIdPath, request: Request) -> Response:
        """What was answered so far, as JSON lines."""
        job = await jobs.store.get(job_id, owner_of(request))

        async def lines() -> AsyncIterator[bytes]:
            async for result in jobs.results(job):
                yield result_line(job, result)

        return StreamingResponse(lines(), media_type="application/jsonl", headers={"Cache-Control": "no-store"})

    @router.get("/v1/jobs/{job_id}/events", response_class=Response, responses=EVENTS_RESPONSES)
    async def events(
        job_id: JobIdPath,
        request: Request,
        last_event_id: Annotated[
            str | None,
            Header(alias="Last-Event-ID", pattern=r"^[0-9]{1,18}$", description="The last event that was read."),
        ] = None,
    ) -> Response:
        """What happens to a job, while it happens, and what has happened before."""
        job = await jobs.store.get(job_id, owner_of(request))
        after = int(last_event_id or 0)
        if not job.is_active and after >= job.num_events:
            return Response(status_code=204)  # to a browser's EventSource: do not come back

        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_chunks(jobs, job, after), media_type="text/event-stream", headers=headers)

    return router


async def _chunks(jobs: JobService, job: Job, after: int) -> AsyncIterator[bytes]:
    num_silent = 0
    async for event in jobs.events(job, after=after):
        num_silent = 0 if event else num_silent + 1
        if event is None:
            if num_silent % _KEEP_ALIVE_LOOKS == 0:
                yield b": keep-alive\n\n"
        elif event.name != "done":
            yield event_chunk(job, event)
        elif (ended := await jobs.store.by_number(job.number)) is not None:
            yield done_event(event, await jobs.whole_answer(ended))
