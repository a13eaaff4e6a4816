"""One open WebSocket: its running requests, and when it ends.

Every question that is taken has exactly one terminal event, its last; when the socket has ended, nothing that was asked
on it runs any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from starlette.websockets import WebSocket, WebSocketDisconnect

from tru_vlm.api.error_response import new_request_id
from tru_vlm.api.event_stream import first_of
from tru_vlm.api.routing_key import with_routing_key
from tru_vlm.api.security.identity import principal_of
from tru_vlm.api.service import InferenceService, RequestStream
from tru_vlm.api.stopping import draining_error
from tru_vlm.api.websocket.messages import (
    SocketCancelBody,
    SocketRequestFields,
    error_message,
    event_message,
    parse_message,
    parse_question,
)
from tru_vlm.errors import InternalError, InvalidRequestError, OverloadedError, TruError
from tru_vlm.telemetry.exchange import on_behalf_of
from tru_vlm.types import DoneEvent, ErrorEvent, Origin

logger = logging.getLogger(__name__)

_IDLE = (1000, "idle")
_SERVER_STOPS = (1012, "the server stops")
_RETRY_AFTER_SECONDS = 2.0
_FAREWELL_SECONDS = 2.0


class SocketSession:
    """Answers what is asked on a socket, until the client leaves or falls silent, or the server stops.

    Args:
        service: runs the requests.
        socket: a connection that may be accepted.
        drains: is set when the server begins to stop.
        routing_key: of all its questions, see :mod:`tru_vlm.api.routing_key`.
    """

    def __init__(
        self, service: InferenceService, socket: WebSocket, drains: asyncio.Event, routing_key: str | None
    ) -> None:
        self._service = service
        self._socket = socket
        self._drains = drains
        self._routing_key = routing_key
        self._live: dict[str, RequestStream] = {}  # by the client's id, until the terminal event
        self._answers: set[asyncio.Task[None]] = set()
        self._is_idle = asyncio.Event()
        self._idle_clock: asyncio.TimerHandle | None = None
        self._is_lost = False
        self._farewell: tuple[int, str] | None = None

    async def run(self) -> None:
        """Accept, answer, and close."""
        await self._socket.accept()
        self._restart_idle_clock()
        try:
            with contextlib.suppress(WebSocketDisconnect):
                await first_of(self._read(), self._wait_for_silence(), self._drain())
        except asyncio.CancelledError:
            # The server has drained for as long as it may: the answers end with what there is of them.
            self._farewell = _SERVER_STOPS
            self._cancel(None)
            if self._answers:
                await asyncio.wait(self._answers, timeout=_FAREWELL_SECONDS)
        finally:
            await self._stop_all()
        if self._farewell is not None:
            with contextlib.suppress(WebSocketDisconnect, TimeoutError):
                async with asyncio.timeout(_FAREWELL_SECONDS):
                    await self._socket.close(*self._farewell)

    async def _read(self) -> None:
        """Take messages until the client leaves; none is read while the answer to the last cannot be sent."""
        while (message := await self._socket.receive())["type"] != "websocket.disconnect":
            await self._take(message.get("text"))
            self._restart_idle_clock()

    async def _wait_for_silence(self) -> None:
        await self._is_idle.wait()
        self._farewell = _IDLE

    async def _drain(self) -> None:
        await self._drains.wait()
        while self._answers:
            await asyncio.wait(set(self._answers))
        self._farewell = _SERVER_STOPS

    async def _take(self, text: str | None) -> None:
        """Do what a message says, or tell what is wrong with it."""
        chosen = None
        try:
            message = parse_message(text)
            if isinstance(message, SocketCancelBody):
                self._cancel(message.id)
                return
            self._check_free(message.chosen)
            chosen = message.chosen
            await self._ask(message)
        except TruError as error:
            await self._send(error_message(error.info(), new_request_id(), chosen))
        except WebSocketDisconnect:
            raise
        except Exception:
            request_id = new_request_id()
            with on_behalf_of(Origin(request_id)):
                logger.exception("request %s failed", request_id)
            await self._send(error_message(InternalError().info(), request_id, chosen))

    def _check_free(self, chosen: str | None) -> None:
        """Refuse an id that is in use.

        Raises:
            InvalidRequestError: it is; the error must not look like the end of the request that has it.
        """
        if chosen in self._live:
            raise InvalidRequestError(
                f"A request with the id {chosen!r} runs on this socket, and goes on; choose another id.",
                param="id",
                code="duplicate_id",
            )

    async def _ask(self, message: SocketRequestFields) -> None:
        """Begin to answer a question.

        Raises:
            TruError: it is not taken.
        """
        if self._drains.is_set():
            raise draining_error()
        most = self._service.settings.max_socket_requests
        if len(self._answers) >= most:
            raise OverloadedError(
                f"{most} requests run on this socket, which is the most; wait for one to end, or cancel one.",
                code="socket_full",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        request = with_routing_key(self._service.check_body(parse_question(message)), self._routing_key)
        principal = principal_of(self._socket)
        await self._service.rates.count_request(principal)
        stream = await self._service.open(request, principal)
        chosen = message.chosen or stream.id
        self._live[chosen] = stream
        self._answers.add(asyncio.create_task(self._answer(chosen, stream), name=f"socket answer {stream.id}"))

    async def _answer(self, chosen: str, stream: RequestStream) -> None:
        """Send a request's events; one that cannot be sent any more is stopped."""
        try:
            with contextlib.suppress(WebSocketDisconnect):
                async for event in stream:
                    if isinstance(event, DoneEvent | ErrorEvent):
                        # Before it is told: who reads it may ask again at once, under the same id.
                        del self._live[chosen]
                        await stream.aclose()
                    await self._send(event_message(event, stream.id, chosen))
        finally:
            self._live.pop(chosen, None)
            await stream.aclose()
            self._answers.discard(asyncio.current_task())
            self._restart_idle_clock()

    def _cancel(self, chosen: str | None) -> None:
        """Stop a request, or all; each still gets its terminal event.  One that is not live has got it."""
        for name, stream in self._live.items():
            if chosen in {None, name}:
                stream.cancel()

    async def _stop_all(self) -> None:
        """Nobody listens any more."""
        answers = set(self._answers)
        for answer in answers:
            answer.cancel()
        if answers:
            await asyncio.wait(answers)
        if self._idle_clock is not None:
            self._idle_clock.cancel()

    async def _send(self, text: str) -> None:
        """Send; waits while the client does not read.

        Raises:
            WebSocketDisconnect: the client is gone.
        """
        if self._is_lost:  # Starlette tells it only once
            raise WebSocketDisconnect(1006)
        try:
            await self._socket.send_text(text)
        except WebSocketDisconnect:
            self._is_lost = True
            raise

    def _restart_idle_clock(self) -> None:
        if self._idle_clock is not None:
            self._idle_clock.cancel()
        self._idle_clock = None
        if not self._answers:
            seconds = self._service.settings.socket_idle_seconds
            self._idle_clock = asyncio.get_running_loop().call_later(seconds, self._is_idle.set)
