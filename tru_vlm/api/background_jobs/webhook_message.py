"""The message that tells a job's end: its text, and how the OpenAPI schema shows it.  It sends nothing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from tru_vlm.api.background_jobs.openapi import JobAnswer, JobSummary

_JOB_ID = "job_9f86d081884c7d659a2feaa0c55ad015"
_ENDED_AT = 1790000600


class JobEndedMessage(BaseModel):
    """A job has ended, however it did."""

    type: Literal["job.succeeded", "job.failed", "job.cancelled"]
    timestamp: str = Field(
        description="When it ended.",
        examples=["2026-09-21T14:23:20.000Z"],
        json_schema_extra={"format": "date-time"},
    )
    data: JobSummary = Field(description="The job, as small as lists have it: what it found out is to be fetched.")


def message_body(job: JobAnswer, *, ended_at: float) -> str:
    """The message about a job.

    Args:
        job: as clients read it.
        ended_at: seconds since 1970.
    """
    timestamp = datetime.fromtimestamp(ended_at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    values = {"type": f"job.{job.status}", "timestamp": timestamp, "data": job.model_dump()}
    message = JobEndedMessage.model_validate(values)
    return json.dumps(message.model_dump(), ensure_ascii=False, separators=(",", ":"))


def _header(name: str, description: str, schema: dict[str, Any], example: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": True,
        "description": description,
        "schema": schema,
        "example": example,
    }


_EXAMPLE = {
    "type": "job.succeeded",
    "timestamp": "2026-09-21T14:23:20.000Z",
    "data": {
        "id": _JOB_ID,
        "object": "job",
        "kind": "batch",
        "status": "succeeded",
        "counts": {"total": 100, "succeeded": 100, "failed": 0, "remaining": 0},
        "progress": 1.0,
        "error": None,
        "created_at": 1790000000,
        "started_at": 1790000001,
        "ended_at": _ENDED_AT,
        "expires_at": _ENDED_AT + 7 * 86400,
        "results_url": f"/v1/jobs/{_JOB_ID}/results",
        "events_url": f"/v1/jobs/{_JOB_ID}/events",
    },
}
WEBHOOKS: dict[str, Any] = {
    "jobEnded": {
        "post": {
            "tags": ["jobs"],
            "summary": "A job has ended",
            "description": (
                "Sent to the `webhook.url` of a job, and signed with its `webhook.secret`, as "
                "https://www.standardwebhooks.com has it. It may come twice, with the same `webhook-id`."
            ),
            "operationId": "job_ended",
            "security": [],
            "parameters": [
                _header(
                    "webhook-id",
                    "The message's, the same at every attempt.",
                    {"type": "string"},
                    "msg_2d9c51a1b6f04a0bb6f1c1f5f2b8a7d3",
                ),
                _header(
                    "webhook-timestamp",
                    "When this attempt was made, in seconds since 1970; refuse what is too old.",
                    {"type": "string", "pattern": "^[0-9]+$"},
                    str(_ENDED_AT),
                ),
                _header(
                    "webhook-signature",
                    "`v1,` and, in base64, the HMAC-SHA256 of `{webhook-id}.{webhook-timestamp}.{body}`; its key is "
                    "what stands behind `whsec_` in the secret, decoded from base64.",
                    {"type": "string", "pattern": "^v1,[A-Za-z0-9+/]{43}=$"},
                    "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
                ),
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"$ref": f"#/components/schemas/{JobEndedMessage.__name__}"},
                        "example": _EXAMPLE,
                    }
                },
            },
            "responses": {
                "2XX": {"description": "It is taken."},
                "410": {"description": "It is not sent again."},
                "default": {
                    "description": "It is sent again, later; after `Retry-After` seconds at the earliest. Redirects "
                    "are not followed."
                },
            },
        }
    }
}
COMPONENT_BODIES = (JobEndedMessage,)
