"""What the routes of resumable uploads take and answer, as the OpenAPI schema shows it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from tru_vlm.api.openapi.description import ERROR_RESPONSES, error_entry

Responses = dict[int | str, dict[str, Any]]


class UploadAnswer(BaseModel):
    """A resumable upload."""

    id: str = Field(examples=["0f9d2c4e8b1a47c6a5d3e2f1908b7c6d"])
    filename: str | None = Field(description="From the metadata's `filename`.", examples=["clip.mp4"])
    offset: int = Field(description="Bytes that are there.", examples=[1048576])
    size_bytes: int = Field(description="Bytes that it will have.", examples=[81920000])
    expires_at: int = Field(description="When it may be removed if no more bytes come, seconds since 1970.")
    video_id: str | None = Field(description="The kept video that it has become; null while it goes on.")


def _header(name: str, description: str, *, required: bool = True) -> dict[str, Any]:
    schema = {"type": "string"}
    return {"name": name, "in": "header", "required": required, "description": description, "schema": schema}


def _told(**headers: str) -> dict[str, Any]:
    return {
        name.replace("_", "-"): {"description": text, "schema": {"type": "string"}} for name, text in headers.items()
    }


_VERSION = _header("Tus-Resumable", "`1.0.0`.")
_NOT_FOUND: Responses = {404: error_entry("There is no such upload (any more).")}
_WRONG_VERSION: Responses = {412: error_entry("`Tus-Resumable` is not 1.0.0.")}
_AT = _told(Upload_Offset="Bytes that are there.", Upload_Expires="When it may be removed, as an HTTP date.")
_BECOME = _told(Video_Id="The kept video that it has become, if it is complete.")

CREATE_PARAMETERS = {
    "parameters": [
        _VERSION,
        _header("Upload-Length", "Bytes of the file."),
        _header("Upload-Metadata", "Pairs of a key and a base64 value; `filename` is looked at.", required=False),
    ]
}
CREATE_RESPONSES: Responses = {
    201: {"description": "The upload has begun.", "headers": {**_told(Location="Where its bytes go."), **_AT}},
    **{status: ERROR_RESPONSES[status] for status in (400, 413, 429, 503)},
    **_WRONG_VERSION,
    507: error_entry("There is no room for it; the message has the numbers."),
}
HEAD_RESPONSES: Responses = {
    200: {
        "description": "Where the upload is.",
        "headers": {**_told(Upload_Length="Bytes of the file."), **_AT, **_BECOME},
    },
    **_NOT_FOUND,
    **_WRONG_VERSION,
}
PATCH_BODY = {
    "parameters": [
        _VERSION,
        _header("Upload-Offset", "Where the bytes begin; the last answer told it."),
        _header("Upload-Checksum", "`sha1`, `sha256` or `md5`, a space, and the base64 digest.", required=False),
    ],
    "requestBody": {
        "required": True,
        "content": {"application/offset+octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
}
PATCH_RESPONSES: Responses = {
    204: {"description": "The bytes are there.", "headers": {**_AT, **_BECOME}},
    **{status: ERROR_RESPONSES[status] for status in (400, 413, 503)},
    **_NOT_FOUND,
    409: error_entry("The upload is at another offset, or another request has taken over."),
    **_WRONG_VERSION,
    415: error_entry("The content type is wrong, or the complete file is not a video or image; it is then removed."),
    460: error_entry("The bytes do not have the checksum; none of them counts."),
}
DELETE_RESPONSES: Responses = {**_NOT_FOUND, **_WRONG_VERSION}
UPLOAD_RESPONSES: Responses = {**_NOT_FOUND}
