"""A stream's writes: what is there together goes out together, and nothing waits for what is not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tru_vlm.api import event_stream
from tru_vlm.api.event_stream import EventStreamResponse, sse_json
from tru_vlm.errors import InternalError
from tru_vlm.types import Answer, DeltaEvent, DoneEvent, ErrorEvent, RequestEvent, StatusEvent, Timings, Usage

STATUS = StatusEvent("r", "generating", None)
DELTAS = [DeltaEvent("r", text) for text in ("A", " red", " star")]
DONE = DoneEvent(Answer("r", "m", "A red star", "stop", Usage(1, 0, 3), None, Timings()))
ERROR = ErrorEvent("r", InternalError().info())


class _Request:
    """A running request whose events come when the test says so."""

    id = request_id = "r"

    def __init__(self) -> None:
        self.events: asyncio.Queue[RequestEvent] = asyncio.Queue()
        self.is_closed = False

    @property
    def has_next(self) -> bool:
        return not self.events.empty()

    async def accepted(self) -> None: ...

    def __aiter__(self) -> _Request:
        return self

    async def __anext__(self) -> RequestEvent:
        return await self.events.get()

    def cancel(self) -> None: ...

    async def aclose(self) -> None:
        self.is_closed = True


def bodies_of(*batches: list[RequestEvent], first: list[RequestEvent]) -> list[dict[str, Any]]:
    """What is sent of a request whose events come in batches, each when the one before has gone out."""

    async def scenario() -> list[dict[str, Any]]:
        request, sent = _Request(), []
        coming = iter(batches)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message.get("body"):
                for event in next(coming, []):
                    request.events.put_nowait(event)

        await EventStreamResponse(request, first)({"type": "http"}, asyncio.Event().wait, send)
        assert request.is_closed
        assert sent.pop(0)["type"] == "http.response.start"
        return sent

    return asyncio.run(scenario())


@pytest.mark.parametrize("end", [DONE, ERROR], ids=["done", "error"])
def test_events_that_are_there_are_one_piece_and_the_end_ends_the_body(end: RequestEvent) -> None:
    sent = bodies_of(DELTAS, [end], first=[STATUS])
    pieces = [[STATUS], DELTAS, [end]]
    assert [body["body"] for body in sent] == [b"".join(map(sse_json, piece)) for piece in pieces]
    assert [body["more_body"] for body in sent] == [True, True, False]


def test_an_end_that_comes_with_the_text_goes_with_it() -> None:
    sent = bodies_of([*DELTAS, DONE], first=[STATUS])
    assert len(sent) == 2
    assert sent[1] == {
        "type": "http.response.body",
        "body": b"".join(map(sse_json, [*DELTAS, DONE])),
        "more_body": False,
    }


def test_a_client_is_told_that_the_server_lives_where_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "_KEEP_ALIVE_SECONDS", 0.001)

    async def scenario() -> list[bytes]:
        request, sent = _Request(), []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message.get("body", b""))
            if sent.count(event_stream._KEEP_ALIVE) == 2:
                request.events.put_nowait(DONE)

        await EventStreamResponse(request, [STATUS])({"type": "http"}, asyncio.Event().wait, send)
        return sent

    assert asyncio.run(scenario())[1:] == [sse_json(STATUS), *[event_stream._KEEP_ALIVE] * 2, sse_json(DONE)]
