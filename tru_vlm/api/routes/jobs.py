"""Jobs: ``/v1/inference/batch``, to have questions answered in the background, and ``/v1/jobs``, to look after them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from tru_vlm.api.background_jobs.openapi import (
    DELETE_RESPONSES,
    JOB_RESPONSES,
    RESUME_RESPONSES,
    SUBMIT_BODY,
    SUBMIT_RESPONSES,
    JobAnswer,
    JobIdPath,
    JobList,
)
from tru_vlm.api.background_jobs.service import JobService
from tru_vlm.api.event_stream import CLIENT_CLOSED_REQUEST
from tru_vlm.api.request_body import content_type_of, owner_of, receive_json
from tru_vlm.api.service import InferenceService
from tru_vlm.jobs.tables import JobStatus

_PAGE_SIZE, _MAX_PAGE_SIZE = 20, 100


def build_router(service: InferenceService, jobs: JobService) -> APIRouter:
    """The routes over ``jobs``, whose items ``service`` answers."""
    router = APIRouter(tags=["jobs"])

    @router.post(
        "/v1/inference/batch",
        status_code=202,
        response_model=JobAnswer,
        openapi_extra=SUBMIT_BODY,
        responses=SUBMIT_RESPONSES,
    )
    async def batch(request: Request) -> Response:
        """Have many questions answered in the background: JSON with `items`, or a form with a file of JSON lines.

        `{"kind": "long_video", …}` has one long video described span by span, and a question answered from that.

        Every line is checked first: the job is accepted whole, or refused with the first mistake. What is accepted
        survives a restart of the server.
        """
        owner, content_type = owner_of(request), content_type_of(request)
        try:
            if content_type.startswith("multipart/form-data"):
                job = await jobs.receive(request.stream(), content_type, owner=owner)
            else:
                job = await jobs.submit(await receive_json(service, request), owner=owner)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return JSONResponse((await jobs.answer(job)).model_dump(), 202, {"Location": f"/v1/jobs/{job.id}"})

    @router.get("/v1/jobs")
    async def list_jobs(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=_MAX_PAGE_SIZE, description="Most jobs of a page.")] = _PAGE_SIZE,
        cursor: Annotated[
            str | None, Query(pattern=r"^[0-9]{1,18}$", description="A page's `next_cursor`, for the page after it.")
        ] = None,
        status: Annotated[JobStatus | None, Query(description="Only jobs of this status.")] = None,
    ) -> JobList:
        """The jobs, the newest first."""
        below = int(cursor) if cursor is not None else None
        found = await jobs.store.page(owner_of(request), below=below, limit=limit + 1, status=status)
        page, has_more = found[:limit], len(found) > limit
        next_cursor = str(page[-1].number) if has_more else None
        return JobList(data=await jobs.answers(page), has_more=has_more, next_cursor=next_cursor)

    @router.get("/v1/jobs/{job_id}", responses=JOB_RESPONSES)
    async def get_job(job_id: JobIdPath, request: Request) -> JobAnswer:
        """Where a job is."""
        return await jobs.whole_answer(await jobs.store.get(job_id, owner_of(request)))

    @router.post("/v1/jobs/{job_id}/resume", responses=RESUME_RESPONSES)
    async def resume(job_id: JobIdPath, request: Request) -> JobAnswer:
        """Go on with a job that was cancelled or failed: what was not answered is asked again, and nothing else."""
        return await jobs.answer(await jobs.resume(job_id, owner_of(request)))

    @router.delete("/v1/jobs/{job_id}", response_model=JobAnswer, responses=DELETE_RESPONSES)
    async def cancel_or_delete(job_id: JobIdPath, request: Request) -> Response:
        """Cancel a job that has not ended (what it got so far stays, and it can be resumed); delete one that has."""
        job = await jobs.cancel_or_delete(job_id, owner_of(request))
        return Response(status_code=204) if job is None else JSONResponse((await jobs.answer(job)).model_dump())

    return router
