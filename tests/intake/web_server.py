"""A small HTTP server on a loopback address, for fetching from.  It records what it was asked."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Handler = Callable[[asyncio.StreamWriter, "Asked"], Awaitable[None]]


@dataclass
class Asked:
    """One request as it came."""

    target: str
    headers: dict[str, str]


@dataclass
class WebServer:
    """Where it listens and what it was asked so far."""

    port: int = 0
    asked: list[Asked] = field(default_factory=list)


@asynccontextmanager
async def web_server(
    handler: Handler, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[WebServer]:
    web = WebServer()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            lines = [line.partition(": ") for line in head[1:] if line]
            asked = Asked(target=head[0].split(" ")[1], headers={name.lower(): value for name, _, value in lines})
            web.asked.append(asked)
            await handler(writer, asked)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            tasks.discard(task)

    server = await asyncio.start_server(serve, host, 0, ssl=tls)
    web.port = server.sockets[0].getsockname()[1]
    try:
        yield web
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answer(status: int = 200, body: bytes = b"", **headers: str) -> Handler:
    """A fixed answer; header names are written with underscores."""

    async def handle(writer: asyncio.StreamWriter, _: Asked) -> None:
        writer.write(raw_answer(status, body, **headers))

    return handle


def raw_answer(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    fields = {"content_length": str(len(body)), **headers}
    lines = [f"HTTP/1.1 {status} X"] + [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
