"""The OpenAPI description of the WebSocket, which OpenAPI has no word for: the upgrade, and both sides' messages."""

from __future__ import annotations

from typing import Any

from tru_vlm.api.openapi.description import ANSWER_EXAMPLE, error_entry
from tru_vlm.api.websocket.messages import CLIENT_MESSAGES, EVENTS

COMPONENT_BODIES = (*CLIENT_MESSAGES, *EVENTS)
DESCRIPTION = """A WebSocket: questions and their events as JSON text messages, several questions at once on one socket.

**You send** `SocketRequestBody`: the body of `/v1/inference/url` with an `id` of your choice; and `SocketCancelBody` to
stop a request, or without `id` all of this socket.

**You get** the events of a streamed answer, each with `type` and `id`: `status`, `video`, `delta`, then exactly one of
`done` (with `finish_reason` `abort` when cancelled) and `error`. An `error` whose `id` is null tells what is wrong with
a message that began no request; the socket stays open.

**It closes** with 1000 when nothing was asked for a while, 1009 after a message that is too large, 1012 when the server
stops (running answers end first, new questions get the error `draining`). Closing it stops all its requests. Pages of
other sites are refused with 403.
"""
_ID = {"id": "first", "request_id": "req-0f9d2c"}
_CLIENT_EXAMPLES = {
    "request": {
        "value": {
            "type": "request",
            "id": "first",
            "video_url": "https://example.com/clip.mp4",
            "prompt": "What happens in this video?",
            "video_params": {"fps": 2.0},
            "generation_params": {"max_tokens": 128, "temperature": 0.0},
        }
    },
    "cancel": {"value": {"type": "cancel", "id": "first"}},
}
_EVENT_EXAMPLES = {
    "status": {"value": {"type": "status", **_ID, "stage": "waiting", "queue_position": 2}},
    "delta": {"value": {"type": "delta", **_ID, "text": "A red"}},
    "done": {"value": {**ANSWER_EXAMPLE, "type": "done", **_ID}},
    "error": {
        "value": {
            "type": "error",
            **_ID,
            "error": {
                "type": "invalid_request_error",
                "code": "invalid_value",
                "message": "video_params.fps: Input should be greater than 0 (got -1).",
                "param": "video_params.fps",
                "request_id": "req-0f9d2c",
            },
        }
    },
}


def _one_of(models: tuple[type, ...]) -> dict[str, Any]:
    return {"oneOf": [{"$ref": f"#/components/schemas/{model.__name__}"} for model in models]}


CLIENT_MESSAGE = {"x-client-messages": {"schema": _one_of(CLIENT_MESSAGES), "examples": _CLIENT_EXAMPLES}}
"""An extension of the operation: a GET has no body in which what the client sends could be described."""

RESPONSES: dict[int | str, dict[str, Any]] = {
    101: {
        "description": "The socket is open; these are the messages that the server sends.",
        "content": {"application/json": {"schema": _one_of(EVENTS), "examples": _EVENT_EXAMPLES}},
    },
    403: error_entry("The page is another site's, and not among `ALLOWED_ORIGINS`."),
    426: error_entry("This was a plain request; open a WebSocket."),
}
