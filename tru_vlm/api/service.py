"""The one door to the product: what routes call to receive, check and run a request.

It knows neither HTTP nor LitServe, and nothing of a request's stages (``request_run.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from tru_vlm.api import schemas
from tru_vlm.api.request_run import RequestRun
from tru_vlm.api.schema_check import SchemaCheck
from tru_vlm.api.schemas import InferenceRequest
from tru_vlm.api.workers import WorkerPool
from tru_vlm.errors import OverloadedError, TruError
from tru_vlm.intake.fetch import FetchLimits, UrlFetcher
from tru_vlm.intake.multipart import receive_multipart
from tru_vlm.intake.spool import Spool, SpooledFile
from tru_vlm.intake.url_cache import UrlCache
from tru_vlm.processor.profile import ModelProfile
from tru_vlm.settings import Settings
from tru_vlm.types import DoneEvent, ErrorEvent, RequestEvent
from tru_vlm.video.service import VideoService

_RETRY_AFTER_SECONDS = 2.0
_MAX_FORM_FIELD_BYTES = 1 << 20
_MAX_FORM_FIELDS = 64


@dataclass(frozen=True, slots=True)
class ParsedForm:
    """A received form: its text fields, and its file, which is on disk."""

    fields: dict[str, str]
    video: SpooledFile | None


class RequestStream:
    """The events of one running request.  Iterate to the terminal event, or :meth:`aclose` to cancel."""

    def __init__(self, run: RequestRun, on_end: Callable[[], None]) -> None:
        self.id = run.id
        self._run = run
        self._ended = False
        self._task = asyncio.create_task(run.execute(), name=f"request {run.id}")
        self._task.add_done_callback(lambda _: on_end())

    async def accepted(self) -> None:
        """Wait until every check that can be made before decoding has passed, or the request has ended."""
        accepted = asyncio.create_task(self._run.accepted.wait())
        try:
            await asyncio.wait({accepted, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            accepted.cancel()

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> RequestEvent:
        if self._ended:
            raise StopAsyncIteration
        event = await self._run.events.get()
        self._ended = isinstance(event, DoneEvent | ErrorEvent)
        return event

    async def aclose(self) -> None:
        """Cancel the request, in whatever stage it is, and wait until its resources are free."""
        self._ended = True
        # Let a task that has not begun reach its first await: cancelled before, it could not clean up.
        await asyncio.sleep(0)
        self._task.cancel()
        await asyncio.wait({self._task})


class InferenceService:
    """Everything between the routes and the workers; one per HTTP process.

    Args:
        settings: the server's configuration.
        profile: what the model accepts.
        socket_directory: where the workers listen.
        num_workers: how many there are.
    """

    def __init__(self, settings: Settings, profile: ModelProfile, socket_directory: Path, num_workers: int) -> None:
        self.settings = settings
        self.profile = profile
        self.model_name = settings.model_name or profile.model_path.rstrip("/").rpartition("/")[-1]
        self.workers = WorkerPool(socket_directory, num_workers, settings.max_batch_size)
        self.spool = Spool(
            settings.storage_dir / "spool",
            max_bytes=settings.max_spool_bytes,
            free_space_floor=settings.min_free_bytes,
        )
        self.videos = VideoService(
            frames_dir=settings.storage_dir / "frames",
            frame_cache_bytes=settings.frame_cache_bytes,
            decode_processes=settings.decode_processes,
            decode_timeout_seconds=settings.decode_timeout_seconds,
            decode_memory_bytes=settings.decode_memory_bytes,
            reader=settings.video_reader,
            max_video_seconds=settings.max_video_seconds,
            max_source_pixels=settings.max_source_pixels,
        )
        self._fetcher = UrlFetcher(
            spool=self.spool,
            limits=FetchLimits(max_bytes=settings.max_upload_bytes, total_seconds=settings.fetch_timeout_seconds),
            allow_private=settings.allow_private_urls,
            allowed_hosts=frozenset(filter(None, map(str.strip, settings.allowed_url_hosts.split(",")))),
            cache=UrlCache(spool=self.spool, max_bytes=settings.url_cache_bytes),
        )
        self._schemas = SchemaCheck()
        self._capacity = settings.max_queued_requests + num_workers * settings.max_batch_size
        self._num_open = 0

    @property
    def num_open(self) -> int:
        """Requests that have been opened and have not ended."""
        return self._num_open

    async def start(self) -> None:
        """Start decode processes and connect to the workers."""
        await self.spool.start()
        await self.videos.start()
        self.workers.start()

    async def close(self) -> None:
        """Stop decode processes and close the links."""
        await self.workers.close()
        await self.videos.close()
        await self.spool.close()

    async def receive_form(self, chunks: AsyncIterator[bytes], content_type: str) -> ParsedForm:
        """Read a multipart body, its file straight to disk.

        Raises:
            TruError: if the body is malformed or too large, or the server is full; nothing is left on disk.
        """
        self._check_capacity()
        form = await receive_multipart(
            chunks,
            content_type,
            spool=self.spool,
            file_fields=frozenset({"video"}),
            max_file_bytes=self.settings.max_upload_bytes,
            max_field_bytes=_MAX_FORM_FIELD_BYTES,
            max_fields=_MAX_FORM_FIELDS,
        )
        return ParsedForm(form.fields, form.files.get("video"))

    async def parse_form(self, form: ParsedForm) -> InferenceRequest:
        """Check a form's fields; its file is removed when they are wrong.

        Raises:
            InvalidRequestError: naming the field at fault.
        """
        try:
            return schemas.parse_form(form.fields, form.video, self.settings)
        except TruError:
            await self.discard(form.video)
            raise

    def parse_json(self, body: bytes) -> InferenceRequest:
        """Check a JSON body.

        Raises:
            InvalidRequestError: naming the field at fault.
        """
        return schemas.parse_json(body, self.settings)

    async def discard(self, file: SpooledFile | None) -> None:
        """Remove an uploaded file that will not be used."""
        if file is not None:
            await self.spool.remove(file)

    async def open(self, request: InferenceRequest) -> RequestStream:
        """Start work on a request.

        Raises:
            OverloadedError: if too many are open; its file is removed.
        """
        try:
            self._check_capacity()
        except OverloadedError:
            await self.discard(request.file)
            raise
        self._num_open += 1
        run = RequestRun(
            request,
            model_name=self.model_name,
            settings=self.settings,
            profile=self.profile,
            videos=self.videos,
            workers=self.workers,
            fetcher=self._fetcher,
            spool=self.spool,
            schemas=self._schemas,
        )
        return RequestStream(run, on_end=self._closed)

    def _closed(self) -> None:
        self._num_open -= 1

    def _check_capacity(self) -> None:
        if self._num_open >= self._capacity:
            raise OverloadedError(
                f"All {self._capacity} places are taken; try again in a moment.",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
