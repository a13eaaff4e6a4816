"""Events of a request as JSON and as server-sent events (https://html.spec.whatwg.org/#server-sent-events)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tru_vlm.api.error_response import error_body
from tru_vlm.types import Answer, DeltaEvent, DoneEvent, ErrorEvent, RequestEvent, StatusEvent, VideoEvent

T = TypeVar("T")

CLIENT_CLOSED_REQUEST = 499
"""The status that is logged for an answer nobody waits for any more (nginx's)."""

_KEEP_ALIVE = b": keep-alive\n\n"
_KEEP_ALIVE_SECONDS = 15.0
_CERTAIN_SECONDS = 1.0
_FAREWELL_SECONDS = 2.0


class RunningRequest(Protocol):
    """The events of a running request, as :class:`tru_vlm.api.service.RequestStream` has them."""

    id: str
    request_id: str

    @property
    def has_next(self) -> bool:
        """Whether the next event is there already."""
        ...

    async def accepted(self) -> None:
        """Wait until the early checks have passed, or the request has ended."""
        ...

    def __aiter__(self) -> AsyncIterator[RequestEvent]: ...

    async def __anext__(self) -> RequestEvent: ...

    def cancel(self) -> None:
        """Stop it; its last events can be read."""
        ...

    async def aclose(self) -> None:
        """Stop it; nobody reads its events."""
        ...


def answer_body(answer: Answer) -> dict[str, Any]:
    """The JSON of a whole answer."""
    body = dataclasses.asdict(answer)
    body["usage"]["total_tokens"] = answer.usage.total_tokens
    return body


def event_name(event: RequestEvent) -> str:
    """The event's name on the wire: status, video, delta, done or error."""
    match event:
        case StatusEvent():
            return "status"
        case VideoEvent():
            return "video"
        case DeltaEvent():
            return "delta"
        case DoneEvent():
            return "done"
        case ErrorEvent():
            return "error"


def event_body(event: RequestEvent) -> dict[str, Any]:
    """The event's JSON."""
    match event:
        case DoneEvent(answer):
            return answer_body(answer)
        case ErrorEvent(request_id, info):
            return error_body(info, request_id)
        case _:
            return dataclasses.asdict(event)


def sse(name: str, data: str) -> bytes:
    """One server-sent event; every line of ``data`` gets its own field."""
    lines = "".join(f"data: {line}\n" for line in data.split("\n"))
    return f"event: {name}\n{lines}\n".encode()


def sse_json(event: RequestEvent) -> bytes:
    """A request's event as a server-sent event with JSON data."""
    return sse(event_name(event), json.dumps(event_body(event), ensure_ascii=False))


async def peek_until_certain(stream: RunningRequest) -> list[RequestEvent]:
    """The first events, held back until a failure of the early stages would have shown (or a second has passed).

    So an error in them is a real HTTP status, and a long decode still tells its stage.
    """
    await stream.accepted()
    events: list[RequestEvent] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CERTAIN_SECONDS):
            async for event in stream:
                events.append(event)
                if not isinstance(event, StatusEvent):
                    break
    return events


class EventStreamResponse(Response):
    """Streams a request's events; a client that leaves cancels the request at once, whatever stage it is in.

    Starlette's own streaming response may notice a lost client only at its next write, which a queued request
    does not make.

    Args:
        stream: the request.
        first: events that were already taken from it.
        encode: turns one event into bytes, which may be none.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        stream: RunningRequest,
        first: list[RequestEvent],
        encode: Callable[[RequestEvent], bytes] = sse_json,
        headers: dict[str, str] | None = None,
    ) -> None:
        own = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Request-Id": stream.request_id}
        super().__init__(headers={**own, **(headers or {})})
        del self.headers["content-length"]
        self._stream = stream
        self._first = first
        self._encode = encode
        self._is_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the terminal event or until the client leaves.

        When the server stops and has drained for as long as it may, the answer ends with what there is of it.
        """
        del scope  # an ASGI application is called with it
        try:
            await first_of(self._send(send), _disconnected(receive))
        except asyncio.CancelledError:
            if not self._is_started:
                raise
            await self._abort(send)
        finally:
            await self._stream.aclose()

    async def _send(self, send: Send) -> None:
        self._is_started = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        events = self._first
        while not any(isinstance(event, DoneEvent | ErrorEvent) for event in events):
            if chunk := b"".join(map(self._encode, events)):  # to a peer, an empty chunk is the end
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            while not (events := await self._next_events()):
                await send({"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True})
        await send({"type": "http.response.body", "body": b"".join(map(self._encode, events)), "more_body": False})

    async def _next_events(self) -> list[RequestEvent]:
        """All that have come, in one piece: each wakes the client.  None when for a while nothing came."""
        try:
            async with asyncio.timeout(_KEEP_ALIVE_SECONDS):
                events = [await anext(self._stream)]
        except TimeoutError:
            return []
        while self._stream.has_next:
            events.append(await anext(self._stream))
        return events

    async def _abort(self, send: Send) -> None:
        """Stop the request and send its last events, to a client that reads them."""
        self._stream.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                async for event in self._stream:
                    if chunk := self._encode(event):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})


async def collect(stream: RunningRequest, request: Request) -> list[RequestEvent] | None:
    """What was sampled and the terminal event, or None when the client left first (the request is then cancelled)."""

    async def lasting() -> list[RequestEvent]:
        return [event async for event in stream if isinstance(event, VideoEvent | DoneEvent | ErrorEvent)]

    try:
        return await unless_client_leaves(lasting, request)
    finally:
        await stream.aclose()


async def unless_client_leaves(work: Callable[[], Awaitable[T]], request: Request) -> T | None:
    """What ``work`` gives, or None when the client left first (it is then cancelled, perhaps before it began)."""
    result: list[T] = []

    async def run() -> None:
        result.append(await work())

    await first_of(run(), _disconnected(request.receive))
    return result[0] if result else None


async def first_of(*jobs: Awaitable[None]) -> None:
    """Run all; when one ends, cancel the others, wait for them, and raise what the ended ones raised."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _disconnected(receive: Receive) -> None:
    """Return when the client is gone; its body has been read before."""
    while (await receive())["type"] != "http.disconnect":
        pass
