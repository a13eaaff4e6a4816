"""Ends requests whose body comes too slowly, or is larger than any route takes.  It knows no route."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from starlette.types import Message, Receive

from tru_vlm.errors import PayloadTooLargeError, SlowBodyError

MIN_BYTES_PER_SECOND = 1024
"""On average, once the first wait is over: slower senders hold a place for next to nothing."""


def watch_body(
    receive: Receive, *, idle_seconds: float, max_bytes: int, clock: Callable[[], float] = time.monotonic
) -> Callable[[], Awaitable[Message]]:
    """``receive``, raising instead of waiting for a body that does not come.

    Args:
        receive: of the request.
        idle_seconds: longest wait for the next bytes.
        max_bytes: of the whole body.
        clock: seconds.

    Raises:
        SlowBodyError: from what is returned.
        PayloadTooLargeError: likewise.
    """
    is_over = False
    num_bytes = 0
    start = clock()

    async def watched() -> Message:
        nonlocal is_over, num_bytes
        if is_over:  # what is waited for now is the client's leaving
            return await receive()
        try:
            async with asyncio.timeout(idle_seconds):
                message = await receive()
        except TimeoutError:
            raise SlowBodyError(f"No byte of the body came for {idle_seconds:g} seconds.") from None
        is_over = not message.get("more_body", False)
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise PayloadTooLargeError(f"The body is larger than {max_bytes} bytes.")
        elapsed = clock() - start
        if not is_over and elapsed > idle_seconds and num_bytes < elapsed * MIN_BYTES_PER_SECOND:
            raise SlowBodyError(f"The body comes at less than {MIN_BYTES_PER_SECOND} bytes per second.")
        return message

    return watched
