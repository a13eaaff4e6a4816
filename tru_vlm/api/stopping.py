"""How the HTTP process stops: what is new is refused at once, and what runs may end.  It knows uvicorn, and no route.

Uvicorn's own way begins with closing its socket, so that a load balancer that asks whether requests may be sent here
reads no answer.  So it is told to stop only when what ran has ended, or may run no longer; until then everybody who
connects is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable
from types import FrameType

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from tru_vlm.errors import UnavailableError

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_SECONDS = 0.1
_FAREWELL_SECONDS = 3.0
_RETRY_AFTER_SECONDS = 2.0
_CLOSE = (b"connection", b"close")


def draining_error() -> UnavailableError:
    """What is told to those who ask for something new."""
    return UnavailableError(
        "The server is being stopped and takes nothing new; another one will answer, or this one when it is back.",
        code="draining",
        retry_after_seconds=_RETRY_AFTER_SECONDS,
    )


class Drain:
    """One per HTTP process.

    Args:
        seconds: how long running answers may go on.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun = asyncio.Event()
        self._deadline = float("inf")

    @property
    def has_begun(self) -> bool:
        """Whether the server has been told to stop."""
        return self._begun.is_set()

    def check_open(self) -> None:
        """Refuse new work.

        Raises:
            UnavailableError: the server stops.
        """
        if self.has_begun:
            raise draining_error()

    @contextlib.asynccontextmanager
    async def on_signal(self, is_hurried: Callable[[], bool]) -> AsyncIterator[None]:
        """While this is entered, a signal to stop begins the drain, and uvicorn stops at its end.

        Args:
            is_hurried: whether what still runs must end now.
        """
        # Uvicorn tells nobody who it is; its handlers are methods of the server.  There are none under another server.
        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if not isinstance(server, uvicorn.Server):
            yield
            return
        loop = asyncio.get_running_loop()

        def begin(_number: int, _frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._begun.set)

        for number in _SIGNALS:  # uvicorn puts back what was there before its own
            signal.signal(number, begin)
        tasks = [asyncio.create_task(self._run(server)), asyncio.create_task(self._hurry(server, is_hurried))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    async def _run(self, server: uvicorn.Server) -> None:
        await self._begun.wait()
        self._deadline = time.monotonic() + self._seconds
        try:
            running = set(server.server_state.tasks)
            logger.info("told to stop; %d requests and sockets are open, for %g s at most", len(running), self._seconds)
            _part_with_clients(server)
            while running and (left := self._deadline - time.monotonic()) > 0:
                _, running = await asyncio.wait(running, timeout=min(left, _LOOK_SECONDS))
        finally:
            # What was begun since then, a download or a look at the server's health, has the rest of the time.
            left = max(0.0, self._deadline - time.monotonic())
            server.config.timeout_graceful_shutdown = left  # type: ignore[assignment] # any number will do
            server.handle_exit(signal.SIGTERM, None)

    async def _hurry(self, server: uvicorn.Server, is_hurried: Callable[[], bool]) -> None:
        """End what is open as uvicorn does when the time is over."""
        await self._begun.wait()
        while not is_hurried():  # noqa: ASYNC110 - set by another process
            await asyncio.sleep(_LOOK_SECONDS)
        logger.warning("told to stop again; what is open ends now")
        self._deadline = min(self._deadline, time.monotonic() + _FAREWELL_SECONDS)
        for task in list(server.server_state.tasks):
            task.cancel()


def _part_with_clients(server: uvicorn.Server) -> None:
    """Lead clients away: sockets are told that the server stops, and answers from now on end their connections."""
    server.config.encoded_headers.append(_CLOSE)
    server.server_state.default_headers = [*server.server_state.default_headers, _CLOSE]
    for connection in list(server.server_state.connections):
        if isinstance(connection, WebSocketsSansIOProtocol) and connection.handshake_complete:
            connection.shutdown()
