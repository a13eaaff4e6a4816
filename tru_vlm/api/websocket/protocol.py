"""Uvicorn's WebSocket protocol, made to drain and to let go of clients that do not read.

Every private corner of uvicorn that this project touches is here; ``tests/api/websocket/test_socket_protocol.py`` fails
clearly when a new uvicorn changes one of them.  Written against 0.54.  It knows no message.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.requests import HTTPConnection
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from tru_vlm.settings import Settings

_STATE = "server_drains"
_FAREWELL_SECONDS = 2.0

# Uvicorn logs the query of every handshake, which may hold a secret.  Ours has a line of its own.
_logger = logging.getLogger("uvicorn.error.websocket")
_logger.setLevel(logging.WARNING)


def server_drains(connection: HTTPConnection) -> asyncio.Event:
    """Is set when the server begins to stop; never, where another ASGI server runs the routes."""
    event = getattr(connection.state, _STATE, None)
    return event if isinstance(event, asyncio.Event) else asyncio.Event()


def socket_options(settings: Settings) -> dict[str, Any]:
    """Arguments of ``uvicorn.Config`` for WebSockets."""
    return {
        "ws": DrainingSocketProtocol,
        "ws_max_size": settings.max_json_bytes,
        "ws_ping_interval": settings.socket_ping_seconds,
        "ws_ping_timeout": settings.socket_ping_seconds,
        # Events are short and come one by one: compressing them costs memory and time, and saves nothing.
        "ws_per_message_deflate": False,
    }


class DrainingSocketProtocol(WebSocketsSansIOProtocol):
    """As uvicorn's, but the application says goodbye, and a connection that is to be closed does not outlive it.

    Uvicorn cuts every WebSocket when the server is told to stop.  It also closes a connection only when the client has
    read what was written, which a client that does not read never does.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn.debug = False  # it would log every header at LOG_LEVEL=debug, keys among them, and every message
        self.logger = _logger
        self._drains = asyncio.Event()
        self._abort_timer: asyncio.TimerHandle | None = None

    async def run_asgi(self) -> None:
        """Run the application, which can find the event by :func:`server_drains`."""
        self.scope["state"][_STATE] = self._drains
        self.scope["query_string"] = b""  # no socket takes one, and uvicorn would log it, keys and all
        await super().run_asgi()

    def shutdown(self) -> None:
        """The server stops: tell the application, which closes the connection in its own time."""
        if not self.handshake_complete or self.close_sent:
            super().shutdown()
            return
        self.close_timeout = _FAREWELL_SECONDS  # a client that does not answer the goodbye must not hold up the others
        self._drains.set()

    def keepalive_timeout(self) -> None:
        """The client has not answered a ping."""
        super().keepalive_timeout()
        self.transport.abort()

    async def send(self, message: ASGISendEvent) -> None:
        """Send; a connection that has failed is a client that left, not a mistake of the application."""
        if self._is_over():
            raise ClientDisconnected
        await super().send(message)
        if self._is_over():  # refused, with an answer; uvicorn would complain that the handshake was forgotten
            self.handshake_complete = True

    def _is_over(self) -> bool:
        return self.close_sent

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """The application has ended, and uvicorn closes the connection, or waits for the client's goodbye."""
        super().on_task_complete(task)
        if not self.disconnected:
            self._abort_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        if self._abort_timer is not None:
            self._abort_timer.cancel()
        super().connection_lost(exc)
