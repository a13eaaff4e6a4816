"""A running request whose end is written down before anybody reads of it, also when nobody listens any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tru_vlm.api.service import RequestStream
from tru_vlm.types import DoneEvent, ErrorEvent, RequestEvent, TerminalEvent

logger = logging.getLogger(__name__)


class RecordedStream:
    """Used as a :class:`RequestStream`.

    Args:
        stream: the request.
        on_end: is given its terminal event, once.
    """

    def __init__(self, stream: RequestStream, on_end: Callable[[TerminalEvent], Awaitable[None]]) -> None:
        self.id = stream.id
        self.request_id = stream.request_id
        self._stream = stream
        self._on_end = on_end
        self._recording: asyncio.Task[None] | None = None

    @property
    def has_next(self) -> bool:
        """Whether the next event is there already."""
        return self._stream.has_next

    async def accepted(self) -> None:
        """As :meth:`RequestStream.accepted`."""
        await self._stream.accepted()

    def __aiter__(self) -> RecordedStream:
        return self

    async def __anext__(self) -> RequestEvent:
        event = await anext(self._stream)
        if isinstance(event, DoneEvent | ErrorEvent):
            await self._record(event)
        return event

    def cancel(self) -> None:
        """As :meth:`RequestStream.cancel`."""
        self._stream.cancel()

    async def aclose(self) -> None:
        """Stop the request if it runs, and wait until its resources are free and its end is written down."""
        self._stream.cancel()
        if self._recording is None:
            async for event in self._stream:
                if isinstance(event, DoneEvent | ErrorEvent):
                    await self._record(event)
        else:
            await asyncio.wait({self._recording})
        await self._stream.aclose()

    async def _record(self, event: TerminalEvent) -> None:
        # A task of its own: whoever reads may be cancelled, and the end must be written all the same.
        self._recording = asyncio.create_task(self._write(event))
        await asyncio.shield(self._recording)

    async def _write(self, event: TerminalEvent) -> None:
        try:
            await self._on_end(event)
        except Exception:
            logger.exception("the end of request %s could not be written down", self.id)
