"""Both clients with one face, so that every test runs with each: the asynchronous one on a loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import httpx

from tru_vlm.client import AsyncClient, AsyncEventStream, Client, Event


class Transport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """Over the network, but counts the requests and refuses the first ones, as a busy server does."""

    def __init__(self, *refusals: httpx.Response) -> None:
        self.refusals = list(refusals)
        self.requests: list[httpx.Request] = []
        self.body_bytes: list[int] = []
        self._sync, self._async = httpx.HTTPTransport(), httpx.AsyncHTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if not self.refusals:
            return self._sync.handle_request(request)
        assert isinstance(request.stream, httpx.SyncByteStream)
        self.body_bytes.append(sum(map(len, request.stream)))
        return self.refusals.pop(0)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if not self.refusals:
            return await self._async.handle_async_request(request)
        assert isinstance(request.stream, httpx.AsyncByteStream)
        self.body_bytes.append(sum([len(chunk) async for chunk in request.stream]))
        return self.refusals.pop(0)

    def close(self) -> None:
        self._sync.close()

    async def aclose(self) -> None:
        await self._async.aclose()


class Driven:
    """An asynchronous client whose methods wait."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            async def run() -> Any:
                return await method(*args, **kwargs)

            return self._runner.run(run())

        return call

    def stream(self, *args: Any, **kwargs: Any) -> DrivenStream:
        return DrivenStream(self._client.stream(*args, **kwargs), self._runner)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


class DrivenStream(Iterator[Event]):
    def __init__(self, stream: AsyncEventStream, runner: asyncio.Runner) -> None:
        self._stream, self._runner = stream, runner

    def __next__(self) -> Event:
        async def step() -> Event | None:
            return await anext(aiter_of(self._stream), None)

        event = self._runner.run(step())
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        self._runner.run(self._stream.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def aiter_of(stream: AsyncEventStream) -> AsyncIterator[Event]:
    return aiter(stream)


KINDS: dict[str, type[Client | Driven]] = {"sync": Client, "async": Driven}
