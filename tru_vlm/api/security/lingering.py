"""Lets a client read an early answer while it is still sending.

A request that is refused before its body has come (413, 429, a wrong field) is answered at once.  If the connection
were closed then, what the client still sends would reset it, and many clients would report a broken connection instead
of the answer.  So the rest of the body is read and dropped for a bounded time, as web servers do ("lingering close").
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LINGER_SECONDS = 10.0


class LingeringClose:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass through; hold back the very end of an answer until the request's body has ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_received = False

        async def watched_receive() -> Message:
            nonlocal is_received
            message = await receive()
            is_received = is_received or not message.get("more_body", False)
            return message

        async def lingering_send(message: Message) -> None:
            if message["type"] != "http.response.body" or message.get("more_body", False) or is_received:
                await send(message)
                return
            # The body is complete for the client, which knows its length; the exchange is not.
            await send({**message, "more_body": True})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_SECONDS):
                    while not is_received:
                        await watched_receive()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app(scope, watched_receive, lingering_send)
