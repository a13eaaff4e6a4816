"""HTTP messages as a gateway passes them on: a request with its client's address, an answer with its server's name.

It opens no connection.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from urllib.parse import quote

import httpx
from starlette.types import Message, Scope, Send

from tru_vlm.cluster.body import Body
from tru_vlm.cluster.sse_tail import EventTail
from tru_vlm.cluster.visit import COOKIE
from tru_vlm.errors import ErrorInfo

CONNECT_SECONDS = 5.0

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade expect".split()
)
_OF_ONE_HOP = frozenset({b"date", b"server"})
_RUNNING_ANSWER = re.compile(rb"ui/answers/([A-Za-z0-9_-]+)/events")
_ANSWER_SECONDS = 600
_REQUEST_ID = b"x-request-id"


def forwarded_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """A request's headers, and by them who sent it."""
    headers = [(name.lower(), value) for name, value in scope["headers"]]
    before = [value for name, value in headers if name == b"x-forwarded-for"]
    client = scope["client"][0].encode() if scope.get("client") else b""
    kept = [(name, value) for name, value in headers if name not in _HOP_BY_HOP and name != b"x-forwarded-for"]
    if client:
        kept.append((b"x-forwarded-for", b", ".join([*before, client])))
    if not any(name == b"x-forwarded-proto" for name, _ in kept):
        kept.append((b"x-forwarded-proto", scope["scheme"].encode()))
    return kept


def target(scope: Scope) -> bytes:
    """Path and query, as they came."""
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    return path.split(b"?")[0] + (b"?" + scope["query_string"] if scope["query_string"] else b"")


def forwarded(scope: Scope, address: str, body: Body) -> httpx.Request:
    """A request for the server at ``address``."""
    headers = forwarded_headers(scope)
    if body.is_chunked:
        headers.append((b"transfer-encoding", b"chunked"))
    return httpx.Request(
        scope["method"],
        httpx.URL(address).copy_with(raw_path=target(scope)),
        headers=headers,
        stream=_Stream(body) if body.exists else httpx.ByteStream(b""),
        extensions={"timeout": {"connect": CONNECT_SECONDS}},
    )


def naming_once(scope: Scope, send: Send) -> Send:
    """``send`` without the request's own id, which Serve adds to every answer."""
    own = next((value for name, value in scope["headers"] if name == _REQUEST_ID), None)

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message["headers"] if (name.lower(), value) != (_REQUEST_ID, own)]
            message = {**message, "headers": kept}
        await send(message)

    return sending


class _Stream(httpx.AsyncByteStream):
    """A body as httpx wants it."""

    def __init__(self, body: Body) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._body:
            yield chunk


class Answer:
    """One answer to a client.

    Args:
        path: of the request.
        send: ASGI's.

    Attributes:
        is_started: whether the client has its status.
    """

    def __init__(self, path: str, send: Send) -> None:
        self.send = send
        self.is_started = False
        self._path = path
        self._request_id = ""
        self._tail: EventTail | None = None

    async def pass_on(self, response: httpx.Response, server: str) -> None:
        """All of a server's answer.

        Raises:
            httpx.TransportError: the server is gone.
        """
        headers = [
            (name.lower(), value)
            for name, value in response.headers.raw
            if name.lower() not in _HOP_BY_HOP | _OF_ONE_HOP
        ]
        headers.append((b"x-served-by", server.encode()))
        chunks = _chunks(response)
        first = b""
        if self._path == "/ui/ask":  # the page reads the answer itself by another request, which must find this server
            first = b"".join([chunk async for chunk in chunks])
            if found := _RUNNING_ANSWER.search(first):
                path = f"/ui/answers/{found[1].decode()}"
                cookie = f"{COOKIE}={server}; Path={path}; Max-Age={_ANSWER_SECONDS}; HttpOnly; SameSite=Strict"
                headers.append((b"set-cookie", cookie.encode()))
        self._request_id = response.headers.get("x-request-id", "")
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            self._tail = EventTail(self._path)
        self.is_started = True
        await self.send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await self._body(first)
        async for chunk in chunks:
            await self._body(self._tail.whole(chunk) if self._tail else chunk)
        await self._body(self._tail.rest() if self._tail else b"", is_last=True)

    async def cut_short(self, info: ErrorInfo) -> None:
        """The server is gone: end a stream of events with the error.

        Raises:
            ConnectionError: there is no way to tell the client but by ending the connection.
        """
        if self._tail is None:
            raise ConnectionError(info.message)
        await self._body(self._tail.lost(info, self._request_id), is_last=True)

    async def _body(self, chunk: bytes, *, is_last: bool = False) -> None:
        if chunk or is_last:
            await self.send({"type": "http.response.body", "body": chunk, "more_body": not is_last})


async def _chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    if not isinstance(response.stream, httpx.AsyncByteStream):
        raise TypeError("an asynchronous transport answers asynchronously")
    async for chunk in response.stream:
        yield chunk
