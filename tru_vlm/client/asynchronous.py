"""The client for asyncio.  What is sent and how it is read stands in ``calls``; this one waits on the event loop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, closing, nullcontext
from types import TracebackType
from typing import Self, TypeVar, Unpack, cast

import httpx
from httpx_sse import EventSource, SSEError

from tru_vlm.client import calls
from tru_vlm.client.answers import Event, Health, Model, read_event
from tru_vlm.client.calls import Call
from tru_vlm.client.errors import ProtocolError, TransportError
from tru_vlm.client.options import AskOptions
from tru_vlm.client.retries import Retries
from tru_vlm.client.video import KeptVideo, UploadProgress, VideoSource
from tru_vlm.plans import PlanAnswer
from tru_vlm.types import Answer, DoneEvent

T = TypeVar("T")


class AsyncClient:
    """:class:`tru_vlm.client.Client` for asyncio: the same arguments, methods and errors.

    A task that is cancelled while it waits for an answer cancels the request on the server.  ``on_upload`` is called
    in another thread, where the file is read.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_seconds: float = 600.0,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(transport=transport, **calls.http_options(base_url, api_key, timeout_seconds))
        self._retries = retries or Retries()

    async def ask(
        self,
        video: VideoSource,
        prompt: str,
        *,
        on_upload: UploadProgress | None = None,
        **options: Unpack[AskOptions],
    ) -> Answer:
        """The whole answer to a question about a video or image."""
        return await self._run(calls.ask(video, prompt, options), on_upload)

    def stream(
        self,
        video: VideoSource,
        prompt: str,
        *,
        on_upload: UploadProgress | None = None,
        **options: Unpack[AskOptions],
    ) -> AsyncEventStream:
        """The events of an answer while it is made; the request is sent when the first one is asked for."""
        return AsyncEventStream(self, calls.ask(video, prompt, options, stream=True), on_upload)

    async def plan(
        self,
        video: VideoSource,
        prompt: str = "",
        *,
        on_upload: UploadProgress | None = None,
        **options: Unpack[AskOptions],
    ) -> PlanAnswer:
        """What a question would take: frames, tokens, and whether they fit; the model does not run."""
        return await self._run(calls.plan(video, prompt, options), on_upload)

    async def upload(self, video: VideoSource, *, on_upload: UploadProgress | None = None) -> KeptVideo:
        """Let the server keep a file, or what it fetches from a URL, so that questions need not send it again."""
        return await self._run(calls.upload(video), on_upload)

    async def delete(self, video: KeptVideo | str) -> None:
        """Remove a kept video, given it or its id."""
        await self._run(calls.delete(video.id if isinstance(video, KeptVideo) else video))

    async def models(self) -> list[Model]:
        """The models that the server offers."""
        return await self._run(calls.models())

    async def health(self) -> Health:
        """How the server is; an answer even while no worker can."""
        return await self._run(calls.health())

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, call: Call[T], on_upload: UploadProgress | None = None) -> T:
        response = await self.open_response(call, on_upload)
        try:
            await response.aread()
        except httpx.TransportError as error:
            raise calls.transport_error(error) from error
        finally:
            await response.aclose()
        return call.parse(response)

    async def open_response(self, call: Call[T], on_upload: UploadProgress | None) -> httpx.Response:
        """A response of success whose body has not been read; the caller closes it.

        Raises:
            ClientError: the last outcome, when it is not worth a repetition.
        """
        for num_retries in itertools.count():
            outcome = await self._attempt(call, on_upload)
            wait_seconds = self._retries.wait_seconds(num_retries, outcome)
            if wait_seconds is None:
                break
            await asyncio.sleep(wait_seconds)
        return calls.settled(outcome)

    async def _attempt(self, call: Call[T], on_upload: UploadProgress | None) -> httpx.Response | httpx.TransportError:
        """One exchange; the body of an error has been read, any other has not."""
        file = await asyncio.to_thread(call.open, on_upload)
        with closing(file) if file else nullcontext():
            request = call.build(self._http, file)
            if file is not None:
                request.stream = _ReadInThread(cast("httpx.SyncByteStream", request.stream))
            try:
                response = await self._http.send(request, stream=True)
                if calls.is_error(response):
                    try:
                        await response.aread()
                    finally:
                        await response.aclose()
            except httpx.TransportError as error:
                return error
        return response


class AsyncEventStream(AsyncIterator[Event]):
    """:class:`tru_vlm.client.EventStream` for asyncio; use it in ``async with``, or :meth:`close` it."""

    def __init__(self, client: AsyncClient, call: Call[Answer], on_upload: UploadProgress | None) -> None:
        self._events = self._run(client, call, on_upload)

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def close(self) -> None:
        """Stop, and let the server stop."""
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(
        self, client: AsyncClient, call: Call[Answer], on_upload: UploadProgress | None
    ) -> AsyncGenerator[Event, None]:
        response = await client.open_response(call, on_upload)
        try:
            async with aclosing(EventSource(response).aiter_sse()) as messages:
                async for message in messages:
                    event = read_event(message.event, message.data)
                    if event is not None:
                        yield event
                    if isinstance(event, DoneEvent):
                        return
        except SSEError as error:  # a TransportError too
            raise ProtocolError("The answer is no event stream; is this the server?") from error
        except httpx.TransportError as error:
            raise calls.transport_error(error) from error
        finally:
            await response.aclose()
        raise TransportError("The stream ended before the answer did.")


class _ReadInThread(httpx.AsyncByteStream):
    """A body that is read from disk, without holding up the event loop meanwhile."""

    def __init__(self, body: httpx.SyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = iter(self._body)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield chunk
