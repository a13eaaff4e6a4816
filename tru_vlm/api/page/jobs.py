"""The page's jobs: started from the form, the list, and a card that follows one.  It knows no HTML.

``/ui/jobs`` lists and starts them, ``/ui/jobs/{id}/events`` follows one, ``/ui/jobs/events`` the list.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from tru_vlm.api import schemas
from tru_vlm.api.background_jobs.openapi import JobAnswer, JobIdPath
from tru_vlm.api.background_jobs.service import JobService
from tru_vlm.api.error_response import note_error
from tru_vlm.api.event_stream import CLIENT_CLOSED_REQUEST
from tru_vlm.api.page.chats import find_video, keep_video
from tru_vlm.api.page.events import sse_event
from tru_vlm.api.page.form import page_fields
from tru_vlm.api.page.library import ShownVideo
from tru_vlm.api.page.spans import ago, moment
from tru_vlm.api.request_body import owner_of
from tru_vlm.api.security.headers import PAGE_HEADERS
from tru_vlm.api.security.identity import principal_of
from tru_vlm.api.service import InferenceService
from tru_vlm.errors import InvalidRequestError, NotFoundError, TruError
from tru_vlm.jobs.tables import Job, Question

if TYPE_CHECKING:
    from tru_vlm.api.page.html import PageRenderer

_NUM_LISTED, _NUM_QUESTIONS = 20, 200
_PACE_SECONDS = 0.2
"""Least time between two looks at a job, so that a fast one is not drawn for every item."""
_FIELDS = ("kind", "span_seconds", "questions")
_EVENT_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_STILL_HERE = b": still here\n\n"


@dataclass(frozen=True, slots=True)
class ShownJob:
    """A job as its card has it.

    Attributes:
        job: as clients read it, with a long video's timeline and answer.
        title: what is asked.
        video: what it is about; None if it is not kept (any more).
        questions: of a batch, the first ones, with their answers.
    """

    job: JobAnswer
    title: str
    video: ShownVideo | None
    questions: list[Question]

    @property
    def is_active(self) -> bool:
        """Whether it has not ended."""
        return self.job.status in {"queued", "running"}


@dataclass(frozen=True, slots=True)
class ListedJob:
    """A job in the list.

    Attributes:
        job: as clients read it.
        title: what is asked.
        video: the name of what its first question is about; empty if that is not kept (any more).
        has_others: whether its second question is about something else.
        moment: when it was started, ISO 8601 in UTC.
        ago: the same, for people.
        is_active: whether it has not ended.
    """

    job: JobAnswer
    title: str
    video: str
    has_others: bool
    moment: str
    ago: str
    is_active: bool


async def show_job(service: InferenceService, jobs: JobService, job: Job) -> ShownJob:
    """A job with what is known so far."""
    questions = await jobs.store.questions(job, limit=_NUM_QUESTIONS)
    video = await _find_video(service, job, questions)
    is_batch = job.kind == "batch"
    return ShownJob(await jobs.whole_answer(job), title_of(job), video, questions if is_batch else [])


async def list_jobs(service: InferenceService, jobs: JobService, owner: str) -> list[ListedJob]:
    """The newest jobs."""
    found = await jobs.store.page(owner, limit=_NUM_LISTED)
    now = time.time()

    async def listed(job: Job, answer: JobAnswer) -> ListedJob:
        questions = await jobs.store.questions(job, limit=2)
        video = await _find_video(service, job, questions)
        return ListedJob(
            job=answer,
            title=title_of(job),
            video=video.name if video else "",
            has_others=len({question.video_id for question in questions} - {None}) > 1,
            moment=moment(job.created_at),
            ago=ago(now - job.created_at),
            is_active=job.is_active,
        )

    return await asyncio.gather(*(listed(*pair) for pair in zip(found, await jobs.answers(found), strict=True)))


async def _find_video(service: InferenceService, job: Job, questions: Sequence[Question]) -> ShownVideo | None:
    """What a job, or its first question, is about; None if it is not kept (any more)."""
    video_id = job.body.get("request", {}).get("video_id") or next((question.video_id for question in questions), None)
    if video_id is None:
        return None
    try:
        return await find_video(service.library, job.owner, video_id)
    except NotFoundError:
        return None


def title_of(job: Job) -> str:
    """What a job asks, in a line."""
    if job.kind == "long_video":
        return str(job.body["request"]["prompt"])
    return f"{job.num_items} question" + ("s" if job.num_items != 1 else "")


class JobPages:
    """Jobs as HTML.

    Args:
        service: has the videos.
        jobs: has the jobs.
        renderer: the templates.
    """

    def __init__(self, service: InferenceService, jobs: JobService, renderer: PageRenderer) -> None:
        self.service = service
        self.jobs = jobs
        self.renderer = renderer

    async def card(self, job: Job) -> Response:
        """The card of a job."""
        return HTMLResponse(self.renderer.job(await show_job(self.service, self.jobs, job)), headers=PAGE_HEADERS)

    async def rows(self, owner: str) -> str:
        """The rows of the list."""
        return self.renderer.job_rows(await list_jobs(self.service, self.jobs, owner))

    async def list_events(self, owner: str) -> AsyncIterator[bytes]:
        """The rows, whenever they have changed."""
        shown = ""
        async for _ in self.jobs.looks():
            rows = await self.rows(owner)
            yield sse_event("jobs", rows) if rows != shown else _STILL_HERE
            shown = rows
            await asyncio.sleep(_PACE_SECONDS)

    async def events(self, job: Job) -> AsyncIterator[bytes]:
        """What a job's card shows, whenever that has changed; then `close`."""
        num_seen = -1
        async for _ in self.jobs.looks():
            now = await self.jobs.store.by_number(job.number)
            if now is None:
                break
            if now.num_events == num_seen:
                yield _STILL_HERE
                continue
            num_seen = now.num_events
            yield sse_event("job", self.renderer.job_body(await show_job(self.service, self.jobs, now)))
            if not now.is_active:
                break
            await asyncio.sleep(_PACE_SECONDS)
        yield sse_event("close", "")


def add_job_routes(router: APIRouter, pages: JobPages) -> None:
    """Add the page's routes about jobs."""
    _add_list(router, pages)
    _add_card(router, pages)


def _add_list(router: APIRouter, pages: JobPages) -> None:
    @router.get("/ui/jobs", include_in_schema=False)
    async def job_list(request: Request) -> Response:
        """The list of jobs, which keeps itself up to date."""
        return HTMLResponse(pages.renderer.job_list(await pages.rows(owner_of(request))), headers=PAGE_HEADERS)

    @router.get("/ui/jobs/events", include_in_schema=False)
    async def job_list_events(request: Request) -> Response:
        """The list, whenever it has changed."""
        chunks = pages.list_events(owner_of(request))
        return StreamingResponse(chunks, media_type="text/event-stream", headers=_EVENT_HEADERS)


def _add_card(router: APIRouter, pages: JobPages) -> None:
    jobs = pages.jobs

    @router.post("/ui/jobs", include_in_schema=False)
    async def start(request: Request) -> Response:
        """Start a job from the form; its card, or an error at the foot of its form."""
        try:
            return await pages.card(await _submit(pages.service, jobs, request))
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except TruError as error:
            note_error(error.info())
            headers = {**PAGE_HEADERS, "HX-Retarget": "#error-job"}
            return HTMLResponse(pages.renderer.field_error(error.info()), error.info().status, headers)

    @router.post("/ui/jobs/{job_id}/{action}", include_in_schema=False)
    async def act(job_id: JobIdPath, action: Literal["cancel", "resume", "delete"], request: Request) -> Response:
        """Cancel, resume or delete a job; its card, which is empty when it has gone."""
        owner = owner_of(request)
        job = await jobs.store.get(job_id, owner)
        if action == "resume":
            job = await jobs.resume(job_id, owner)
        elif job.is_active == (action == "cancel"):  # else it has just ended, or goes on again: the card says so
            changed = await jobs.cancel_or_delete(job_id, owner)
            if changed is None:
                return HTMLResponse("", headers=PAGE_HEADERS)
            job = changed
        return await pages.card(job)

    @router.get("/ui/jobs/{job_id}/events", include_in_schema=False)
    async def job_events(job_id: JobIdPath, request: Request) -> Response:
        """What a job's card shows, whenever that has changed; then `close`."""
        chunks = pages.events(await jobs.store.get(job_id, owner_of(request)))
        return StreamingResponse(chunks, media_type="text/event-stream", headers=_EVENT_HEADERS)


async def _submit(service: InferenceService, jobs: JobService, request: Request) -> Job:
    """Start the job that a form asks for; its video is kept.

    Raises:
        TruError: the form cannot be accepted.
        ClientDisconnect: the browser leaves while it sends.
    """
    principal = principal_of(request)
    form = await page_fields(service, request)
    fields = {name: value for name, value in form.items() if name not in _FIELDS}
    asked = [line.strip() for line in form.get("questions", "").splitlines() if line.strip()]
    is_batch = form.get("kind") == "batch"
    if is_batch and not asked:
        raise InvalidRequestError("Write at least one question, each on a line of its own.", param="questions")
    if is_batch:
        fields["prompt"] = asked[0]
    body = schemas.form_body(fields, None)
    schemas.build_request(body, service.settings)
    common = await _common(service, body, principal.tenant)
    values: dict[str, Any] = {"kind": "long_video", "span_seconds": _number(form.get("span_seconds", ""))}
    values |= {"prompt": body.prompt, **common}
    if is_batch:
        values = {"items": [{"prompt": question, **common} for question in asked]}
    return await jobs.submit(json.dumps(values).encode(), owner=principal.tenant)


async def _common(service: InferenceService, body: schemas.UrlRequestBody, owner: str) -> dict[str, Any]:
    """What all questions of a job have in common."""
    given = body.model_dump(
        mode="json", exclude_unset=True, exclude_none=True, include={"video_params", "generation_params", "model"}
    )
    return {**given, "video_id": await keep_video(service, body, owner)}


def _number(text: str) -> float:
    """A span's length.

    Raises:
        InvalidRequestError: it is no number.
    """
    try:
        return float(text)
    except ValueError:
        raise InvalidRequestError("Say how long a part is, in seconds.", param="span_seconds") from None
