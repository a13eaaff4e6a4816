"""A JSON body is bounded while it arrives."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from tru_vlm.api.request_body import read_json
from tru_vlm.errors import PayloadTooLargeError

LIMIT = 4096


async def read(*chunks: bytes, endless: bool = False) -> tuple[Any, int]:
    """What the route makes of a body, or its error, and how many chunks it took for it."""
    num_taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal num_taken
        chunk = chunks[num_taken % len(chunks)]
        num_taken += 1
        return {"type": "http.request", "body": chunk, "more_body": endless or num_taken < len(chunks)}

    def parse_json(body: bytes, *, is_plan: bool) -> Any:
        assert not is_plan
        return json.loads(body)

    service = SimpleNamespace(settings=SimpleNamespace(max_json_bytes=LIMIT), parse_json=parse_json)
    request = Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)
    try:
        return await read_json(service, request), num_taken  # type: ignore[arg-type]
    except PayloadTooLargeError as error:
        return error, num_taken


@pytest.mark.parametrize(("size", "fits"), [(LIMIT - 2, True), (LIMIT - 1, False)])
def test_the_limit_is_exact(size: int, fits: bool) -> None:
    value, _ = asyncio.run(read(b'"', b"x" * size, b'"'))
    assert (value == "x" * size) is fits


def test_a_body_that_never_ends_is_refused_while_it_arrives() -> None:
    error, num_taken = asyncio.run(read(b"x" * 1024, endless=True))
    assert isinstance(error, PayloadTooLargeError)
    assert num_taken == 5, "four chunks fit, the fifth is too many"
