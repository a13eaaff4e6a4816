"""The client for ordinary code.  What is sent and how it is read stands in ``calls``; this one waits in its thread."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from types import TracebackType
from typing import Self, TypeVar, Unpack

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


class Client:
    """Asks a TRU server about videos.  Close it, or use it in ``with``; threads may share one.

    Args:
        base_url: where the server is.
        api_key: sent as ``Authorization: Bearer``.
        timeout_seconds: longest silence of the server; how long a question may take in all is the server's setting.
        retries: when a refused request is sent again.
        transport: httpx's, to go another way than over the network (a proxy, a test).

    Every method raises :class:`~tru_vlm.client.errors.ClientError`; those that send a file also ``OSError``.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_seconds: float = 600.0,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(transport=transport, **calls.http_options(base_url, api_key, timeout_seconds))
        self._retries = retries or Retries()

    def ask(
        self,
        video: VideoSource,
        prompt: str,
        *,
        on_upload: UploadProgress | None = None,
        **options: Unpack[AskOptions],
    ) -> Answer:
        """The whole answer to a question about a video or image."""
        return self._run(calls.ask(video, prompt, options), on_upload)

    def stream(
        self,
        video: VideoSource,
        prompt: str,
        *,
        on_upload: UploadProgress | None = None,
        **options: Unpack[AskOptions],
    ) -> EventStream:
        """The events of an answer while it is made; the request is sent when the first one is asked for."""
        return EventStream(self, calls.ask(video, prompt, options, stream=True), on_upload)

    def plan(
        self,
        video: VideoSource,
        prompt: str = "",
        *,
        on_upload: UploadProgress | None = None,
        **options: Unpack[AskOptions],
    ) -> PlanAnswer:
        """What a question would take: frames, tokens, and whether they fit; the model does not run."""
        return self._run(calls.plan(video, prompt, options), on_upload)

    def upload(self, video: VideoSource, *, on_upload: UploadProgress | None = None) -> KeptVideo:
        """Let the server keep a file, or what it fetches from a URL, so that questions need not send it again."""
        return self._run(calls.upload(video), on_upload)

    def delete(self, video: KeptVideo | str) -> None:
        """Remove a kept video, given it or its id."""
        self._run(calls.delete(video.id if isinstance(video, KeptVideo) else video))

    def models(self) -> list[Model]:
        """The models that the server offers."""
        return self._run(calls.models())

    def health(self) -> Health:
        """How the server is; an answer even while no worker can."""
        return self._run(calls.health())

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self, call: Call[T], on_upload: UploadProgress | None = None) -> T:
        response = self.open_response(call, on_upload)
        try:
            response.read()
        except httpx.TransportError as error:
            raise calls.transport_error(error) from error
        finally:
            response.close()
        return call.parse(response)

    def open_response(self, call: Call[T], on_upload: UploadProgress | None) -> httpx.Response:
        """A response of success whose body has not been read; the caller closes it.

        Raises:
            ClientError: the last outcome, when it is not worth a repetition.
        """
        for num_retries in itertools.count():
            outcome = self._attempt(call, on_upload)
            wait_seconds = self._retries.wait_seconds(num_retries, outcome)
            if wait_seconds is None:
                break
            time.sleep(wait_seconds)
        return calls.settled(outcome)

    def _attempt(self, call: Call[T], on_upload: UploadProgress | None) -> httpx.Response | httpx.TransportError:
        """One exchange; the body of an error has been read, any other has not."""
        file = call.open(on_upload)
        with closing(file) if file else nullcontext():
            try:
                response = self._http.send(call.build(self._http, file), stream=True)
                if calls.is_error(response):
                    with closing(response):
                        response.read()
            except httpx.TransportError as error:
                return error
        return response


class EventStream(Iterator[Event]):
    """The events of one answer: status, video and delta, and at last ``DoneEvent``; an error is raised.

    Use it in ``with``, or :meth:`close` it: a stream that is closed before its end cancels the request on the server.
    """

    def __init__(self, client: Client, call: Call[Answer], on_upload: UploadProgress | None) -> None:
        self._events = self._run(client, call, on_upload)

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Stop, and let the server stop."""
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(
        self, client: Client, call: Call[Answer], on_upload: UploadProgress | None
    ) -> Generator[Event, None, None]:
        response = client.open_response(call, on_upload)
        try:
            for message in EventSource(response).iter_sse():
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
            response.close()
        raise TransportError("The stream ended before the answer did.")
