"""Bounds on a request's head, which uvicorn has only for its slower parser: how long it may take, and how large it is.

Whoever opens connections and sends a byte now and then would else hold them for ever, and memory with them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024


class BoundedHeadProtocol(HttpToolsProtocol):
    """uvicorn's protocol; see the module's docstring.  Bodies are bounded elsewhere."""

    head_seconds = 30.0

    def connection_made(self, transport: Any) -> None:
        """A client connected; its first request's head is due."""
        super().connection_made(transport)
        self._num_head_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._head_is_over()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of a head or a body."""
        was_head = self._deadline is not None
        super().data_received(data)
        # Still in the head: all of these bytes are part of it, and httptools keeps them.
        if was_head and self._deadline is not None:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The request's head is too large.")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        """The head is here."""
        self._head_is_over()
        super().on_headers_complete()

    def _expect_head(self) -> None:
        if self._deadline is None:
            self._num_head_bytes = 0
            self._deadline = self.loop.call_later(self.head_seconds, self._give_up)

    def _head_is_over(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def bounded_head_protocol(head_seconds: float) -> type[BoundedHeadProtocol]:
    """The protocol with its bound.

    Args:
        head_seconds: longest time for a request's head.
    """
    return type("BoundedHeadProtocol", (BoundedHeadProtocol,), {"head_seconds": head_seconds})
