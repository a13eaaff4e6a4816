"""What is said on a WebSocket, in both directions, as JSON and as the OpenAPI schema shows it.

A client's messages are checked here; the events are those of ``event_stream.py``.  It knows no connection.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from tru_vlm.api.bodies import Body, parse_object, validate
from tru_vlm.api.error_response import error_body
from tru_vlm.api.event_stream import event_body, event_name
from tru_vlm.api.openapi.description import ErrorDetail
from tru_vlm.api.schemas import UrlRequestBody
from tru_vlm.errors import ErrorInfo, InvalidRequestError
from tru_vlm.types import FinishReason, Moment, RequestEvent, Stage, Timings, VideoInfo

ChosenId = Annotated[
    str,
    Field(
        pattern="^[ -~]{1,128}$",
        description="1 to 128 printable ASCII characters; comes back in every event of the request.",
        examples=["first"],
    ),
]


class SocketRequestBody(UrlRequestBody):
    """A client's message: a question.  The answer is always streamed."""

    type: Literal["request"] = "request"
    id: ChosenId | None = Field(None, description="By default the server's own id of the request.")
    stream: bool = Field(True, description="Changes nothing here; a body of `/v1/inference/url` may have this field.")


class SocketCancelBody(Body):
    """A client's message: stop a request, or all of this socket.  One that has ended is left alone."""

    type: Literal["cancel"]
    id: ChosenId | None = Field(None, description="Which; by default all.")


class _IdBody(Body):
    id: ChosenId | None = None


class _Event(BaseModel):
    id: str = Field(description="The client's id of the request, or else the server's.")
    request_id: str = Field(description="The server's id of the request, for its log.")


class SocketStatus(_Event):
    """Where the request is."""

    type: Literal["status"]
    stage: Stage
    queue_position: int | None = Field(description="Requests ahead of it while it waits.")


class SocketVideo(_Event):
    """The sampling that was used."""

    type: Literal["video"]
    video: VideoInfo


class SocketDelta(_Event):
    """New text."""

    type: Literal["delta"]
    text: str


class SocketUsage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    video_tokens: int
    completion_tokens: int
    cached_tokens: int
    total_tokens: int


class SocketDone(_Event):
    """A request's last event: the whole answer; `finish_reason` is `abort` when it was cancelled."""

    type: Literal["done"]
    model: str
    variant: str | None = Field(None, description="The model that answered, where `model` may be an alias of several.")
    text: str
    finish_reason: FinishReason
    usage: SocketUsage
    video: VideoInfo | None
    timings: Timings
    moments: list[Moment] = Field(description="The times in the video that the text names.")


class SocketError(BaseModel):
    """A request's last event: it failed.  Without `id`: a message that began no request."""

    type: Literal["error"]
    id: str | None = Field(description="The request; null where the message began none.")
    request_id: str = Field(description="The server's id of the request, for its log.")
    error: ErrorDetail


CLIENT_MESSAGES = (SocketRequestBody, SocketCancelBody)
EVENTS = (SocketStatus, SocketVideo, SocketDelta, SocketDone, SocketError)


@dataclass(frozen=True, slots=True)
class SocketRequestFields:
    """A question whose fields are not checked yet, and the id that the client chose for it."""

    chosen: str | None
    values: dict[str, Any]


def parse_message(text: str | None) -> SocketRequestFields | SocketCancelBody:
    """A client's message; None is one that is not text.

    Raises:
        InvalidRequestError: it is neither a question nor a cancellation, or names itself by what is no id.
    """
    if text is None:
        raise InvalidRequestError(
            "The message is binary; accepted is JSON as text. Send a file as a data URI, or to /v1/inference/upload.",
            code="binary_message",
        )
    values = parse_object(text, what="message")
    kind = values.get("type", "request")
    if kind == "cancel":
        return validate(SocketCancelBody, values)
    if kind != "request":
        raise InvalidRequestError(
            f'The type is {str(kind)[:80]!r}; accepted are "request" (which may be left out) and "cancel".',
            param="type",
            code="unknown_type",
        )
    return SocketRequestFields(validate(_IdBody, {"id": values.get("id")}).id, values)


def parse_question(message: SocketRequestFields) -> SocketRequestBody:
    """A question's fields.

    Raises:
        InvalidRequestError: naming the one at fault.
    """
    return validate(SocketRequestBody, message.values)


def event_message(event: RequestEvent, request_id: str, chosen: str) -> str:
    """A request's event: its JSON as in a stream of server-sent events, and whose it is."""
    return _encode(event_name(event), event_body(event), request_id, chosen)


def error_message(info: ErrorInfo, request_id: str, chosen: str | None) -> str:
    """An error of a request that was not opened, or of a message that is none."""
    return _encode("error", error_body(info, request_id), request_id, chosen)


def _encode(kind: str, body: dict[str, Any], request_id: str, chosen: str | None) -> str:
    message = {"type": kind, "id": chosen, "request_id": request_id}
    text = json.dumps({**message, **body, "id": chosen}, ensure_ascii=False)
    # Half a surrogate pair, which a client may have sent in a name that an error repeats, has no UTF-8; in JSON it can
    # be escaped.
    return text.encode("utf-8", "backslashreplace").decode()
