"""Lets an assistant cancel a call by a message, as protocols before 2026 have it, though each message stands alone.

Such a client leaves the call's stream open, and sends ``notifications/cancelled`` with the call's id by a request of
its own.  So that the one finds the other, a client that begins is given a random session id, which it sends with all
that follows; it stands for nothing else, and a server that does not know it answers all the same.  A cancelled call is
told that its client has left.  Of the protocol, this knows no more than that.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tru_vlm.api.security.identity import principal_of

_SESSION = "mcp-session-id"
_Call = tuple[str, str, str]
"""Tenant, session and id of a call."""


class CancelByMessage:
    """Around an application that speaks the protocol.

    Args:
        app: answers messages, one at a time, and stops when its client leaves.
        max_body_bytes: larger bodies are passed on unread.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._running: MutableMapping[_Call, asyncio.Event] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["method"] == "GET":  # a stream for what the server would say unasked, which is nothing
            await Response(status_code=405, headers={"Allow": "POST"})(scope, receive, send)
            return
        body = _Body(receive)
        message = _parse(await body.read(self._max_body_bytes))
        session = Headers(scope=scope).get(_SESSION)
        if message.get("method") == "initialize":
            await self._app(scope, body.receive, _with_session(send))
        elif session is None:
            await self._app(scope, body.receive, send)
        elif message.get("method") == "notifications/cancelled":
            params = message.get("params")
            id_ = params.get("requestId") if isinstance(params, dict) else None
            if (call := self._running.get((principal_of(Request(scope)).tenant, session, repr(id_)))) is not None:
                call.set()
            await self._app(scope, body.receive, send)
        else:
            await self._run((principal_of(Request(scope)).tenant, session, repr(message.get("id"))), scope, body, send)

    async def _run(self, call: _Call, scope: Scope, body: _Body, send: Send) -> None:
        is_cancelled = self._running[call] = asyncio.Event()
        is_open = False  # the response: begun, and not ended

        async def watched(message: Message) -> None:
            nonlocal is_open
            is_open = message["type"] == "http.response.start" or message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, lambda: body.receive_until(is_cancelled), watched)
        finally:
            if self._running.get(call) is is_cancelled:
                del self._running[call]
        if is_cancelled.is_set() and is_open:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Body:
    """A request's body, looked into and then passed on."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read: list[Message] = []

    async def read(self, max_bytes: int) -> bytes:
        """All of it, or as much as is looked into."""
        body = bytearray()
        while len(body) <= max_bytes:
            message = await self._receive()
            self._read.append(message)
            body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        return bytes(body)

    async def receive(self) -> Message:
        """ASGI's."""
        return self._read.pop(0) if self._read else await self._receive()

    async def receive_until(self, is_cancelled: asyncio.Event) -> Message:
        """ASGI's, or that the client has left, as soon as the event is set."""
        if self._read:
            return self._read.pop(0)
        received, cancelled = asyncio.ensure_future(self._receive()), asyncio.ensure_future(is_cancelled.wait())
        try:
            await asyncio.wait({received, cancelled}, return_when=asyncio.FIRST_COMPLETED)
            return received.result() if received.done() else {"type": "http.disconnect"}
        finally:
            received.cancel()
            cancelled.cancel()


def _parse(body: bytes) -> dict[str, Any]:
    """A message; empty if it is none, which the application will tell."""
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _with_session(send: Send) -> Send:
    async def send_with_session(message: Message) -> None:
        if message["type"] == "http.response.start":
            header = (_SESSION.encode(), secrets.token_urlsafe(16).encode())
            message = {**message, "headers": [*message.get("headers", ()), header]}
        await send(message)

    return send_with_session
