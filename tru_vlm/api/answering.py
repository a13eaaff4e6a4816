"""Runs a checked request and answers over HTTP, plain or streamed, in whatever shape its route gives to an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tru_vlm.api.error_response import error_response
from tru_vlm.api.event_stream import (
    CLIENT_CLOSED_REQUEST,
    EventStreamResponse,
    RunningRequest,
    answer_body,
    collect,
    peek_until_certain,
    sse_json,
    unless_client_leaves,
)
from tru_vlm.api.inference_request import InferenceRequest
from tru_vlm.api.security.identity import principal_of
from tru_vlm.api.service import InferenceService, RequestStream
from tru_vlm.types import Answer, DoneEvent, ErrorEvent, RequestEvent, VideoEvent, VideoInfo


class AnswerShape(Protocol):
    """How one request's answer looks."""

    def body(self, answer: Answer, videos: Sequence[VideoInfo]) -> dict[str, Any]:
        """The JSON of a whole answer."""
        ...

    def encode(self, event: RequestEvent) -> bytes:
        """An event of a stream; may be empty."""
        ...


class NativeAnswer:
    """The shape of the native routes."""

    def body(self, answer: Answer, videos: Sequence[VideoInfo]) -> dict[str, Any]:
        """The answer as it is; it has the one video."""
        del videos
        return answer_body(answer)

    def encode(self, event: RequestEvent) -> bytes:
        """Every event, by its name."""
        return sse_json(event)


async def respond(
    service: InferenceService,
    parsed: InferenceRequest,
    request: Request,
    shape_of: Callable[[str], AnswerShape] = lambda _: NativeAnswer(),
    begin: Callable[[RequestStream], Awaitable[RunningRequest]] | None = None,
) -> Response:
    """Answer; a client that leaves cancels the request, whatever stage it is in.

    Args:
        service: runs it.
        parsed: what is asked.
        request: who asks.
        shape_of: the answer's shape, given the request's id.
        begin: takes over the opened request, or closes it and raises.

    Raises:
        OverloadedError: if too many requests are open, of this client or of all.
    """
    opened = await service.open(parsed, principal_of(request))
    stream: RunningRequest = await begin(opened) if begin else opened
    shape = shape_of(stream.id)
    if not parsed.stream:
        return _plain(await collect(stream, request), stream.request_id, shape)
    try:
        first = await unless_client_leaves(partial(peek_until_certain, stream), request)
    except BaseException:
        await stream.aclose()
        raise
    if first is None:
        await stream.aclose()
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if first and isinstance(first[-1], ErrorEvent):
        await stream.aclose()
        return error_response(first[-1].error, stream.request_id)
    return EventStreamResponse(stream, first, shape.encode)


def _plain(events: list[RequestEvent] | None, request_id: str, shape: AnswerShape) -> Response:
    if events is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    videos = [event.video for event in events if isinstance(event, VideoEvent)]
    match events[-1]:
        case DoneEvent(answer):
            return JSONResponse(shape.body(answer, videos), headers={"X-Request-Id": request_id})
        case ErrorEvent(_, info):
            return error_response(info, request_id)
        case other:
            raise AssertionError(f"{other} is no last event")
