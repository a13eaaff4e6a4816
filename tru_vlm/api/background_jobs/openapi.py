"""What the routes of jobs take and answer, as the OpenAPI schema shows it."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, Field

from tru_vlm.api.background_jobs.bodies import BatchFormBody, BatchJobBody, BatchLineBody, LongVideoJobBody
from tru_vlm.api.background_jobs.webhook_bodies import WebhookAnswer
from tru_vlm.api.openapi.description import ANSWER_EXAMPLE, ERROR_RESPONSES, body_of, error_entry, merge_bodies
from tru_vlm.jobs.tables import ItemStatus, JobStatus, Kind

JobIdPath = Annotated[str, Path(max_length=128, description="The job's `id`.")]
_JOB_ID = "job_9f86d081884c7d659a2feaa0c55ad015"


class JobCounts(BaseModel):
    """Items, and what became of them."""

    total: int = Field(examples=[100])
    succeeded: int = Field(examples=[41])
    failed: int = Field(examples=[1])
    remaining: int = Field(description="Not answered yet.", examples=[58])


class JobError(BaseModel):
    """Why a job failed."""

    type: str
    code: str = Field(description="`items_failed`: its results tell which, and why.", examples=["items_failed"])
    message: str
    param: str | None


class TimelineEntry(BaseModel):
    """What happens from when to when, in seconds from the video's start."""

    start: float = Field(examples=[0.0])
    end: float = Field(examples=[30.0])
    text: str = Field(examples=["A red circle moves left."])


class JobSummary(BaseModel):
    """A job without what it found out."""

    id: str = Field(examples=[_JOB_ID])
    object: Literal["job"] = "job"
    kind: Kind
    status: JobStatus = Field(description="`succeeded`: every item did. `failed`: at least one did not.")
    counts: JobCounts
    progress: float = Field(description="Share of the items that have ended, 0 to 1.", examples=[0.42])
    error: JobError | None
    created_at: int = Field(description="Seconds since 1970.", examples=[1790000000])
    started_at: int | None
    ended_at: int | None
    expires_at: int | None = Field(
        description="When it and its results may be removed; null for never, and before its end."
    )
    results_url: str = Field(examples=[f"/v1/jobs/{_JOB_ID}/results"])
    events_url: str = Field(examples=[f"/v1/jobs/{_JOB_ID}/events"])


class JobAnswer(JobSummary):
    """A job."""

    timeline: list[TimelineEntry] | None = Field(
        None, description="Of a long video, as far as it has been described; null for batches, and in lists."
    )
    answer: str | None = Field(None, description="Of a long video: the answer, once the timeline is complete.")
    webhook: WebhookAnswer | None = Field(None, description="Null where the job has none.")


class JobList(BaseModel):
    """A page of the list, the newest first."""

    object: Literal["list"] = "list"
    data: list[JobAnswer]
    has_more: bool
    next_cursor: str | None = Field(description="The `cursor` of the next page.")


class ItemResponse(BaseModel):
    """What the item's route would have answered."""

    status_code: int = Field(examples=[200])
    request_id: str = Field(description="For the server's log.")
    body: dict[str, Any] = Field(description="The answer, or the error in the one shape.")


class ResultLine(BaseModel):
    """A line of the results, in the shape of OpenAI's batches; `index` and `status` are added."""

    id: str = Field(description="Unique on this server.")
    index: int = Field(description="Of the item, from 0.")
    custom_id: str | None
    status: ItemStatus
    response: ItemResponse | None
    error: None = Field(None, description="Always null: what went wrong is the response's body.")


_LINE_EXAMPLE = {
    "custom_id": "clip-17",
    "method": "POST",
    "url": "/v1/inference/url",
    "body": {"video_url": "https://example.com/clip.mp4", "prompt": "What happens in this video?"},
}
SUBMIT_BODY = merge_bodies(
    body_of(
        "application/json",
        BatchJobBody,
        {
            "items": [
                {
                    "custom_id": "clip-17",
                    "video_url": "https://example.com/clip.mp4",
                    "prompt": "What happens in this video?",
                    "generation_params": {"max_tokens": 128},
                }
            ]
        },
    ),
    body_of("multipart/form-data", BatchFormBody, {"file": _LINE_EXAMPLE}),
)
SUBMIT_BODY["requestBody"]["content"]["application/json"]["schema"] = {
    "anyOf": [{"$ref": f"#/components/schemas/{body.__name__}"} for body in (BatchJobBody, LongVideoJobBody)]
}
COMPONENT_BODIES = (BatchJobBody, LongVideoJobBody, BatchFormBody, BatchLineBody, ResultLine)

Responses = dict[int | str, dict[str, Any]]

_NOT_FOUND: Responses = {404: error_entry("There is no such job (any more).")}
JOB_RESPONSES: Responses = {**_NOT_FOUND}
SUBMIT_RESPONSES: Responses = {
    202: {"model": JobAnswer, "description": "The job is accepted, and on the disk."},
    **{status: ERROR_RESPONSES[status] for status in (400, 413, 500, 503)},
    404: error_entry("There is no such model, or no such video is kept; `param` names the item."),
    429: error_entry("Too many jobs are not finished; `Retry-After` says when to try again."),
}
DELETE_RESPONSES: Responses = {
    200: {"model": JobAnswer, "description": "It had not ended, and is cancelled; a second call deletes it."},
    204: {"description": "It had ended, and is deleted with its results."},
    **_NOT_FOUND,
}
RESUME_RESPONSES: Responses = {
    400: error_entry("The job was neither cancelled nor did it fail."),
    **_NOT_FOUND,
    429: SUBMIT_RESPONSES[429],
}
_LINES = {"type": "string", "x-lines": {"$ref": "#/components/schemas/ResultLine"}}
_RESULT_EXAMPLE = {
    "id": f"{_JOB_ID}.0",
    "index": 0,
    "custom_id": "clip-17",
    "status": "succeeded",
    "response": {"status_code": 200, "request_id": "req-0f9d2c", "body": ANSWER_EXAMPLE},
    "error": None,
}
RESULTS_RESPONSES: Responses = {
    200: {
        "description": "A `ResultLine` for each item that has ended so far, in order.",
        "content": {"application/jsonl": {"schema": _LINES, "example": json.dumps(_RESULT_EXAMPLE)}},
    },
    **_NOT_FOUND,
}
EVENTS_RESPONSES: Responses = {
    200: {
        "description": (
            "Server-sent events, from the first on, or from behind `Last-Event-ID`: `status` when the job is queued or "
            "begun, `item` with the result of each item, and last, once, `done` with the job, however it ended."
        ),
        "content": {
            "text/event-stream": {
                "schema": {"type": "string"},
                "example": (
                    'id: 1\nevent: status\ndata: {"status": "queued"}\n\n'
                    'id: 3\nevent: item\ndata: {"index": 0, "status": "succeeded"}\n\n'
                    'id: 4\nevent: done\ndata: {"status": "succeeded"}\n\n'
                ),
            }
        },
    },
    204: {"description": "The client has had the last event."},
    400: error_entry("`Last-Event-ID` is no number of an event."),
    **_NOT_FOUND,
}
