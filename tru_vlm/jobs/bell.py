"""A bell tells everybody who waits in this process that something was written down.  It does not say what."""

from __future__ import annotations

import asyncio
import contextlib


class Bell:
    """For one event loop.  What another process writes down is noticed by looking now and then."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Wake everybody."""
        self._rung.set()
        self._rung = asyncio.Event()

    def next_ring(self) -> asyncio.Event:
        """Is set when it rings next; taken before one looks at something, no ring is missed."""
        return self._rung


async def wait_for(ring: asyncio.Event, timeout_seconds: float) -> None:
    """Until it rings, or time is up."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_seconds):
            await ring.wait()
