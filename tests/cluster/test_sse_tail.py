"""A stream whose server is lost has one last event, whole and in the route's own shape."""

from __future__ import annotations

import json

import pytest

from tru_vlm.cluster.lost import server_lost
from tru_vlm.cluster.sse_tail import EventTail

DELTA = b'event: delta\ndata: {"text": "event: done"}\n\n'
INFO = server_lost().info()


@pytest.mark.parametrize("cut", range(len(DELTA)))
def test_what_came_in_part_is_dropped(cut: int) -> None:
    tail = EventTail("/predict")
    sent = tail.whole(DELTA) + tail.whole(DELTA[:cut])
    sent += tail.lost(INFO, "req-1")
    first, last, rest = sent.split(b"\n\n")
    assert (first + b"\n\n", rest) == (DELTA, b"")
    name, data = last.decode().split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "server_lost"


def test_events_pass_however_they_are_cut() -> None:
    whole = DELTA * 3 + b": keep-alive\n\n" + b"event: done\ndata: {}\n\n"
    for size in (1, 7, 1000):
        tail = EventTail("/predict")
        assert b"".join(tail.whole(whole[at : at + size]) for at in range(0, len(whole), size)) == whole


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/predict", b"event: done\ndata: {}\n\n"),
        ("/predict", b"event: error\ndata: {}\n\n"),
        ("/v1/chat/completions", b"data: [DONE]\n\n"),
        ("/v1/chat/completions", b'data: {"error": {}}\n\n'),
        ("/v1/responses", b"event: response.completed\ndata: {}\n\n"),
    ],
)
def test_nothing_follows_the_last_event(path: str, last: bytes) -> None:
    tail = EventTail(path)
    tail.whole(last)
    assert tail.lost(INFO, "req-1") == b""


def test_each_route_has_its_own_shape() -> None:
    def lost(path: str) -> bytes:
        return EventTail(path).lost(INFO, "req-1")

    assert json.loads(lost("/v1/chat/completions").removeprefix(b"data: "))["error"]["request_id"] == "req-1"
    assert json.loads(lost("/v1/responses").split(b"data: ")[1])["type"] == "error"
    assert lost("/v1/jobs/job-1/events") == lost("/ui/answers/t/events") == b""  # their readers come back
