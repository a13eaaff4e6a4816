"""A request's body on its way through the gateway: looked into, then passed on.  It knows no server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from tru_vlm.api.security.slow_bodies import watch_body


class ClientLeftError(Exception):
    """The client is gone; nobody is to be told."""


@dataclass(frozen=True, slots=True)
class BodyBounds:
    """As the servers' settings have them.

    Attributes:
        max_json_bytes: larger bodies are passed on unread.
        max_bytes: of any body.
        idle_seconds: longest wait for the next bytes.
    """

    max_json_bytes: int
    max_bytes: int
    idle_seconds: float


class Body:
    """One request's.

    Args:
        receive: the request's.
        headers: the request's.
        bounds: what is read, and how long it is waited for.
    """

    def __init__(self, receive: Receive, headers: Headers, bounds: BodyBounds) -> None:
        self._receive = watch_body(receive, idle_seconds=bounds.idle_seconds, max_bytes=bounds.max_bytes)
        self._max_json_bytes = bounds.max_json_bytes
        self._read: list[bytes] = []
        self._is_over = asyncio.Event()
        length = headers.get("content-length", "")
        self.length = int(length) if length.isascii() and length.isdigit() else None
        self.is_chunked = self.length is None and "transfer-encoding" in headers
        if not self.exists:
            self._is_over.set()

    @property
    def exists(self) -> bool:
        """Whether the request has one."""
        return self.is_chunked or bool(self.length)

    async def receive(self) -> Message:
        """ASGI's, in what is left of the body."""
        return await self._receive()

    async def read_whole(self) -> bytes | None:
        """All of it, which is passed on all the same; None where it is larger than JSON may be.

        Raises:
            ClientLeftError: before it was complete.
            TruError: it comes too slowly.
        """
        num_bytes = 0
        while not self._is_over.is_set() and num_bytes <= self._max_json_bytes:
            chunk = await self._next()
            self._read.append(chunk)
            num_bytes += len(chunk)
        return b"".join(self._read) if self._is_over.is_set() else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body: what was read, then what comes.  Raises as :meth:`read_whole`."""
        for chunk in self._read:
            yield chunk
        while not self._is_over.is_set():
            if chunk := await self._next():
                yield chunk

    async def client_leaves(self) -> None:
        """Wait until the client is gone.  While the body comes, whoever reads it is told.

        Raises:
            ClientLeftError: when it is.
        """
        await self._is_over.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        raise ClientLeftError

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        if not message.get("more_body", False):
            self._is_over.set()
        body: bytes = message.get("body", b"")
        return body
