"""Clients that send next to nothing, or far too much of a head: their connections end, and others are answered."""

from __future__ import annotations

import asyncio
import socket
from itertools import count
from urllib.parse import urlsplit

import pytest
from client import TIMEOUT

from tru_vlm.api.security.http_protocol import MAX_HEAD_BYTES
from tru_vlm.api.security.slow_bodies import MIN_BYTES_PER_SECOND, watch_body
from tru_vlm.errors import PayloadTooLargeError, SlowBodyError


def exchange(base: str, *parts: bytes, until: bytes | None = None) -> bytes:
    """What the server says to these bytes, after which nothing more is sent, until it closes the connection.

    Or until these words: after a refusal the server reads on for a while, so that the client can read it.
    """
    address = urlsplit(base)
    with socket.create_connection((address.hostname, address.port), timeout=TIMEOUT) as connection:
        for part in parts:
            connection.sendall(part)
        received = b""
        while (until is None or until not in received) and (chunk := connection.recv(65536)):
            received += chunk
        return received


@pytest.mark.parametrize("begin", [b"", b"G", b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n"])
def test_a_head_that_does_not_end_ends_the_connection(keyed, begin: bytes) -> None:
    assert exchange(keyed.base, begin) == b""


def test_on_a_kept_connection_the_next_head_is_due_too(keyed) -> None:
    first = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = exchange(keyed.base, first, b"GET /v1/health HT")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"200 OK" in answer


def test_a_large_head_is_refused(keyed) -> None:
    line = b"X-A: " + b"a" * 1000 + b"\r\n"
    lines = line * (MAX_HEAD_BYTES // len(line) + 2)
    answer = exchange(keyed.base, b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n" + lines)
    assert answer.startswith(b"HTTP/1.1 400")


def test_a_body_that_stops_is_told_and_the_server_goes_on(keyed) -> None:
    head = (
        "POST /v1/plan HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"
        f"X-API-Key: {keyed.keys['alice']}\r\n\r\n"
    )
    answer = exchange(keyed.base, head.encode(), b'{"prompt": ', until=b"request_id")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"body_timeout"' in answer
    assert b"200 OK" in exchange(keyed.base, b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")


def read_all(*, chunk_bytes: int, seconds_between: float, chunks: int, max_bytes: int = 1 << 30) -> int:
    """How many chunks pass, on a clock of the test's own."""
    sizes = iter([chunk_bytes] * chunks)
    clock = count(0.0, seconds_between)

    async def receive():
        size = next(sizes, None)
        return {"type": "http.request", "body": b"x" * (size or 0), "more_body": size is not None}

    async def read() -> int:
        watched = watch_body(receive, idle_seconds=30.0, max_bytes=max_bytes, clock=lambda: next(clock))
        num_read = 0
        while (await watched())["more_body"]:
            num_read += 1
        return num_read

    return asyncio.run(read())


def test_a_trickle_ends_though_it_never_pauses_for_long() -> None:
    with pytest.raises(SlowBodyError, match=f"less than {MIN_BYTES_PER_SECOND} bytes per second"):
        read_all(chunk_bytes=1, seconds_between=10.0, chunks=1000)
    assert read_all(chunk_bytes=MIN_BYTES_PER_SECOND * 10, seconds_between=10.0, chunks=100) == 100


def test_a_body_that_no_route_takes_ends() -> None:
    with pytest.raises(PayloadTooLargeError):
        read_all(chunk_bytes=1000, seconds_between=0.0, chunks=100, max_bytes=50_000)
