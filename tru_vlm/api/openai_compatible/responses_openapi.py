"""The OpenAPI description of ``POST /v1/responses``: examples, and the shape of an answer that is built by hand."""

from __future__ import annotations

from typing import Any

from tru_vlm.api.openai_compatible.chat_openapi import EXTENSION_SCHEMA, json_of, object_of
from tru_vlm.api.openai_compatible.responses_bodies import RESPONSES_PARTS, InputMessage, ResponsesRequestBody
from tru_vlm.api.openapi.description import ANSWER_EXAMPLE, ERROR_RESPONSES, body_of

COMPONENT_BODIES = (ResponsesRequestBody, InputMessage, *RESPONSES_PARTS)
_REQUEST_EXAMPLE = {
    "model": "demo",
    "input": [
        {
            "role": "user",
            "content": [
                {"type": "input_video", "video_url": "https://example.com/clip.mp4", "fps": 2.0},
                {"type": "input_text", "text": "What happens in this video?"},
            ],
        }
    ],
    "max_output_tokens": 128,
    "temperature": 0.0,
}
_RESPONSE_EXAMPLE = {
    "id": "resp_0f9d2c",
    "object": "response",
    "created_at": 1790000000,
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "model": "demo",
    "output": [
        {
            "id": "msg_0f9d2c",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "A red circle moves left.", "annotations": [], "logprobs": []}],
        }
    ],
    "usage": {
        "input_tokens": 214,
        "input_tokens_details": {"cached_tokens": 192, "cache_write_tokens": 0, "video_tokens": 120},
        "output_tokens": 8,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 222,
    },
    "tru": {
        "variant": "demo",
        "video": [ANSWER_EXAMPLE["video"]],
        "timings": ANSWER_EXAMPLE["timings"],
        "moments": [],
    },
}
_STREAM_EXAMPLE = (
    'event: response.created\ndata: {"type": "response.created", "sequence_number": 0, "response": {}}\n\n'
    "event: response.output_text.delta\n"
    'data: {"type": "response.output_text.delta", "sequence_number": 4, "item_id": "msg_0f9d2c", "output_index": 0, '
    '"content_index": 0, "delta": "A red", "logprobs": []}\n\n'
    'event: response.completed\ndata: {"type": "response.completed", "sequence_number": 9, "response": {}}\n\n'
)
_INTEGER, _STRING = {"type": "integer"}, {"type": "string"}
_MESSAGE_SCHEMA = object_of(
    id=_STRING,
    type={"const": "message"},
    role={"const": "assistant"},
    status={"enum": ["completed", "incomplete"]},
    content={"type": "array", "items": object_of(type={"const": "output_text"}, text=_STRING)},
)
_RESPONSE_SCHEMA = object_of(
    id=_STRING,
    object={"const": "response"},
    created_at=_INTEGER,
    status={"enum": ["completed", "incomplete"]},
    model=_STRING,
    output={"type": "array", "items": _MESSAGE_SCHEMA},
    usage=object_of(
        input_tokens=_INTEGER,
        input_tokens_details=object_of(cached_tokens=_INTEGER, video_tokens=_INTEGER),
        output_tokens=_INTEGER,
        total_tokens=_INTEGER,
    ),
    tru=EXTENSION_SCHEMA,
)
_RESPONSE = json_of(
    "The response; with `stream`, its events: response.created, response.in_progress, response.output_item.added, "
    "response.content_part.added, response.output_text.delta, the same three as done, and exactly one of "
    "response.completed, response.incomplete and response.failed.",
    _RESPONSE_SCHEMA,
    _RESPONSE_EXAMPLE,
)
_RESPONSE["content"]["text/event-stream"] = {"schema": {"type": "string"}, "example": _STREAM_EXAMPLE}

RESPONSES_BODY = body_of("application/json", ResponsesRequestBody, _REQUEST_EXAMPLE)
RESPONSES_RESPONSES: dict[int | str, dict[str, Any]] = {200: _RESPONSE, **ERROR_RESPONSES}
