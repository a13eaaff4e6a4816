"""The OpenAPI description of OpenAI's routes: examples, and the shapes of answers that are built by hand."""

from __future__ import annotations

from typing import Any

from tru_vlm.api.openai_compatible.chat_bodies import PARTS, ChatRequestBody
from tru_vlm.api.openapi.description import ANSWER_EXAMPLE, ERROR_RESPONSES, body_of

COMPONENT_BODIES = (ChatRequestBody, *PARTS)
_CHAT_EXAMPLE = {
    "model": "demo",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "video_url", "video_url": {"url": "https://example.com/clip.mp4", "fps": 2.0}},
                {"type": "text", "text": "What happens in this video?"},
            ],
        }
    ],
    "max_tokens": 128,
    "temperature": 0.0,
}
_USAGE_EXAMPLE = {
    "prompt_tokens": 214,
    "completion_tokens": 8,
    "total_tokens": 222,
    "prompt_tokens_details": {"cached_tokens": 192, "video_tokens": 120},
}
_COMPLETION_EXAMPLE = {
    "id": "chatcmpl-0f9d2c",
    "object": "chat.completion",
    "created": 1790000000,
    "model": "demo",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "A red circle moves left.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": _USAGE_EXAMPLE,
    "tru": {
        "variant": "demo",
        "video": [ANSWER_EXAMPLE["video"]],
        "timings": ANSWER_EXAMPLE["timings"],
        "moments": [],
    },
}
_CHUNK = '{"id": "chatcmpl-0f9d2c", "object": "chat.completion.chunk", "created": 1790000000, "model": "demo", '
_STREAM_EXAMPLE = (
    f'data: {_CHUNK}"choices": [{{"index": 0, "delta": {{"role": "assistant", "content": ""}}}}]}}\n\n'
    f'data: {_CHUNK}"choices": [{{"index": 0, "delta": {{"content": "A red"}}}}]}}\n\n'
    f'data: {_CHUNK}"choices": [{{"index": 0, "delta": {{}}, "finish_reason": "stop"}}]}}\n\n'
    "data: [DONE]\n\n"
)
_MODEL_EXAMPLE = {
    "id": "demo",
    "object": "model",
    "created": 1790000000,
    "owned_by": "tru-vlm",
    "max_model_len": 32768,
}
_ALIAS_EXAMPLE = {**_MODEL_EXAMPLE, "id": "chat", "variants": {"demo": 9.0, "demo-int4": 1.0}}


def object_of(**properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object that has all these."""
    return {"type": "object", "properties": properties, "required": list(properties)}


_INTEGER, _STRING = {"type": "integer"}, {"type": "string"}
_USAGE_SCHEMA = object_of(
    prompt_tokens=_INTEGER,
    completion_tokens=_INTEGER,
    total_tokens=_INTEGER,
    prompt_tokens_details=object_of(cached_tokens=_INTEGER, video_tokens=_INTEGER),
)
_MESSAGE_SCHEMA = object_of(role={"const": "assistant"}, content=_STRING, refusal={"type": "null"})
EXTENSION_SCHEMA = object_of(
    variant=_STRING,
    video={"type": "array", "items": {"$ref": "#/components/schemas/VideoInfo"}},
    timings={"$ref": "#/components/schemas/Timings"},
    moments={"type": "array", "items": {"$ref": "#/components/schemas/Moment"}},
)
_COMPLETION_SCHEMA = object_of(
    id=_STRING,
    object={"const": "chat.completion"},
    created=_INTEGER,
    model=_STRING,
    choices={
        "type": "array",
        "items": object_of(index=_INTEGER, message=_MESSAGE_SCHEMA, finish_reason={"enum": ["stop", "length"]}),
    },
    usage=_USAGE_SCHEMA,
    tru=EXTENSION_SCHEMA,
)
_MODEL_SCHEMA = object_of(
    id=_STRING, object={"const": "model"}, created=_INTEGER, owned_by=_STRING, max_model_len=_INTEGER
)
_MODEL_SCHEMA["properties"]["variants"] = {
    "type": "object",
    "additionalProperties": {"type": "number"},
    "description": "Of an alias only: the models that may answer for it, and their weights.",
}


def json_of(description: str, schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    """An answer that is JSON."""
    return {"description": description, "content": {"application/json": {"schema": schema, "example": example}}}


_COMPLETION = json_of(
    "The completion; with `stream`, its chunks as server-sent events and then `[DONE]`, or an error.",
    _COMPLETION_SCHEMA,
    _COMPLETION_EXAMPLE,
)
_COMPLETION["content"]["text/event-stream"] = {"schema": {"type": "string"}, "example": _STREAM_EXAMPLE}

CHAT_BODY = body_of("application/json", ChatRequestBody, _CHAT_EXAMPLE)
CHAT_RESPONSES: dict[int | str, dict[str, Any]] = {200: _COMPLETION, **ERROR_RESPONSES}
MODELS_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: json_of(
        "The list.",
        object_of(object={"const": "list"}, data={"type": "array", "items": _MODEL_SCHEMA}),
        {"object": "list", "data": [_MODEL_EXAMPLE, _ALIAS_EXAMPLE]},
    )
}
MODEL_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: json_of("The model, or the alias.", _MODEL_SCHEMA, _MODEL_EXAMPLE),
    404: ERROR_RESPONSES[404],
}
