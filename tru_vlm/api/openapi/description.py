"""The OpenAPI description: bodies that routes read by themselves, the error shape, and examples for all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, Field, TypeAdapter
from pydantic.json_schema import models_json_schema

import tru_vlm
from tru_vlm.api.bodies import GenerationParamsBody, VideoParamsBody
from tru_vlm.api.openapi.operations import complete
from tru_vlm.api.schemas import ModelName, Prompt, UrlPlanBody, UrlRequestBody
from tru_vlm.errors import ErrorType
from tru_vlm.plans import PlanAnswer
from tru_vlm.types import Answer

_REF = "#/components/schemas/{model}"
_URL_EXAMPLE = {
    "video_url": "https://example.com/clip.mp4",
    "prompt": "What happens in this video?",
    "video_params": {"fps": 2.0, "max_frames": 64},
    "generation_params": {"max_tokens": 128, "temperature": 0.0},
    "stream": False,
}
ANSWER_EXAMPLE = {
    "id": "req-0f9d2c",
    "model": "demo",
    "text": "A red circle moves left. Then, at <4.2 seconds>, a blue square blinks.",
    "finish_reason": "stop",
    "usage": {
        "prompt_tokens": 214,
        "video_tokens": 120,
        "completion_tokens": 24,
        "cached_tokens": 192,
        "total_tokens": 238,
    },
    "video": {
        "kind": "video",
        "num_frames": 20,
        "height": 96,
        "width": 128,
        "source_height": 240,
        "source_width": 320,
        "video_tokens": 120,
        "decoder": "pyav",
        "duration_seconds": 10.0,
        "source_fps": 24.0,
        "sample_fps": 2.0,
        "frame_timestamps": [0.0, 0.5, 1.0],
        "video_start": 0.0,
        "video_end": 10.0,
        "notes": [],
        "frames_url": "/v1/frames/9f86d081884c7d65/{index}.jpg",
    },
    "timings": {
        "queue": 0.0,
        "fetch": 0.0,
        "video_decode": 0.1,
        "preprocess": 0.0,
        "prefill": 0.1,
        "time_to_first_token": 0.2,
        "total": 0.4,
    },
    "moments": [
        {
            "start_seconds": 4.2,
            "end_seconds": None,
            "text": "<4.2 seconds>",
            "sentence": "Then, at <4.2 seconds>, a blue square blinks.",
        }
    ],
    "variant": "demo",
}
_PLAN_SAMPLING_EXAMPLE = {
    "kind": "video",
    "num_frames": 20,
    "height": 96,
    "width": 128,
    "video_tokens": 120,
    "frame_timestamps": [0.0, 0.5, 1.0],
    "source_fps": 24.0,
    "sample_fps": 2.0,
    "video_start": 0.0,
    "video_end": 10.0,
    "notes": [],
}
_PLAN_EXAMPLE = {
    "model": "demo",
    "variant": "demo",
    "media": {
        "kind": "video",
        "container": "MP4",
        "codec": "h264",
        "size_bytes": 81920,
        "height": 240,
        "width": 320,
        "rotation": 0,
        "duration_seconds": 10.0,
        "source_fps": 24.0,
        "num_frames": 240,
    },
    "sampling": _PLAN_SAMPLING_EXAMPLE,
    "tokens": {"text": 94, "video": 120, "answer": 128, "total": 342, "context": 32768},
    "fits": True,
    "refusal": None,
    "fitted": None,
}
_STREAM_EXAMPLE = (
    'event: status\ndata: {"id": "req-0f9d2c", "stage": "decoding", "queue_position": null}\n\n'
    'event: video\ndata: {"id": "req-0f9d2c", "video": {}}\n\n'
    'event: delta\ndata: {"id": "req-0f9d2c", "text": "A red"}\n\n'
    'event: done\ndata: {"id": "req-0f9d2c", "text": "A red circle moves left."}\n\n'
)


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: ErrorType = Field(description="The family of the error.")
    code: str = Field(description="A stable word for programs.", examples=["invalid_value"])
    message: str = Field(description="A sentence: what was wrong, what came, what is accepted.")
    param: str | None = Field(description="The field at fault.", examples=["video_params.fps"])
    request_id: str = Field(description="For the server's log.")


class ErrorBody(BaseModel):
    """The one error shape."""

    error: ErrorDetail


class UploadRequestBody(VideoParamsBody, GenerationParamsBody):
    """A question about an uploaded video; sampling and generation fields are flat."""

    prompt: Prompt
    video: bytes | None = Field(None, description="The video or image file; or give `video_url` or `video_id`.")
    video_url: str | None = Field(None, description="A URL instead of the file.")
    video_id: str | None = Field(None, description="A kept video instead of the file.")
    model: ModelName | None = None
    stream: bool = Field(False, description="Answer as server-sent events.")


class UploadPlanBody(UploadRequestBody):
    """A question about an uploaded video, to be planned; the form of one that is to be asked will do."""

    prompt: str = Field("", description="The question, if its length is to count.")
    stream: bool = Field(False, description="A plan is never streamed; a question's form may have this field.")


def body_of(content_type: str, model: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """A request body that a route reads by itself."""
    content = {"schema": {"$ref": _REF.format(model=model.__name__)}, "example": example}
    return {"requestBody": {"required": True, "content": {content_type: content}}}


JSON_BODY = body_of("application/json", UrlRequestBody, _URL_EXAMPLE)
UPLOAD_BODY = body_of(
    "multipart/form-data", UploadRequestBody, {"prompt": "What happens in this video?", "fps": 2.0, "max_tokens": 128}
)
PLAN_JSON_BODY = body_of("application/json", UrlPlanBody, _URL_EXAMPLE)
PLAN_UPLOAD_BODY = body_of("multipart/form-data", UploadPlanBody, {"fps": 2.0, "max_tokens": 128})


def merge_bodies(*bodies: dict[str, Any]) -> dict[str, Any]:
    """A request body that may come in several content types."""
    content = {kind: value for body in bodies for kind, value in body["requestBody"]["content"].items()}
    return {"requestBody": {"required": True, "content": content}}


def error_entry(description: str) -> dict[str, Any]:
    """An answer in the one error shape."""
    return {"model": ErrorBody, "description": description}


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: error_entry("A field is wrong; `param` names it."),
    404: error_entry("There is no such model; the message tells which there are."),
    413: error_entry("The video is larger than the server accepts."),
    415: error_entry("The file is not a video or image that can be read."),
    429: error_entry("The server is full; `Retry-After` says when to try again."),
    500: error_entry("A fault of the server."),
    503: error_entry("The server starts, drains, or the worker died."),
    504: error_entry("The request took longer than the server's limit."),
}
ANSWER_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, server-sent events: status, video, delta, then done or error.",
        "content": {
            "application/json": {"schema": {"$ref": _REF.format(model="Answer")}, "example": ANSWER_EXAMPLE},
            "text/event-stream": {"schema": {"type": "string"}, "example": _STREAM_EXAMPLE},
        },
    },
    **ERROR_RESPONSES,
}
PLAN_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The plan, also of a question that would not fit into the context: then `fits` is false.",
        "content": {
            "application/json": {"schema": {"$ref": _REF.format(model="PlanAnswer")}, "example": _PLAN_EXAMPLE},
        },
    },
    **ERROR_RESPONSES,
}


def install_openapi(
    app: FastAPI, more: Sequence[type[BaseModel]] = (), webhooks: Mapping[str, Any] | None = None
) -> None:
    """Describe ``app``; the bodies that its routes read by themselves are added to FastAPI's own schema.

    Args:
        app: all routes.
        more: bodies beside those of the native routes.
        webhooks: what the server itself sends, by name.
    """
    bodies: list[type[BaseModel]] = [UrlRequestBody, UploadRequestBody, UrlPlanBody, UploadPlanBody, *more]
    _, own = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF)
    components = dict(own["$defs"])
    for answer in (Answer, PlanAnswer):
        schema = TypeAdapter(answer).json_schema(ref_template=_REF)
        components |= {**schema.pop("$defs"), answer.__name__: schema}
    components["Usage"]["properties"]["total_tokens"] = {"title": "Total Tokens", "type": "integer"}
    components["Usage"]["required"].append("total_tokens")

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title="TRU V2",
                version=tru_vlm.__version__,
                summary="Ask a video a question.",
                description="Every error has one shape; every opened request ends in exactly one `done` or `error`.",
                license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
                routes=app.routes,
            )
            schema["components"]["schemas"].update(components)
            complete(schema, app.routes)
            schema["webhooks"] = dict(webhooks or {})
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
