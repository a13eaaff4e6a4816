"""The one door to the product: what routes call to receive, check and run a request.

It knows neither HTTP nor LitServe, and nothing of a request's stages (``request_run.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tru_vlm.api import schemas
from tru_vlm.api.inference_request import InferenceRequest
from tru_vlm.api.kept_videos.library_service import LibraryService, borrow_from, build_stores
from tru_vlm.api.openai_compatible.chat_request import ChatRequest, parse_chat
from tru_vlm.api.openai_compatible.responses_request import ResponsesRequest, parse_responses
from tru_vlm.api.pipeline.models import Model, Models
from tru_vlm.api.pipeline.places import Places
from tru_vlm.api.pipeline.planning import Planner
from tru_vlm.api.pipeline.request_run import RequestRun, timed_out
from tru_vlm.api.pipeline.schema_check import SchemaCheck
from tru_vlm.api.security.rate_limits import RateCounter
from tru_vlm.api.workers.pool import StepMetrics, WorkerPool
from tru_vlm.errors import TruError
from tru_vlm.intake.fetch import FetchLimits, UrlFetcher
from tru_vlm.intake.multipart import receive_multipart
from tru_vlm.intake.source import MediaSource, VideoSource
from tru_vlm.intake.spool import Spool, SpooledFile
from tru_vlm.intake.url_cache import UrlCache
from tru_vlm.intake.web_guard import WebGuard
from tru_vlm.plans import PlanAnswer
from tru_vlm.principal import Principal
from tru_vlm.processor.profile import ModelProfile
from tru_vlm.settings import Settings
from tru_vlm.telemetry import catalogue
from tru_vlm.telemetry.catalogue import model_labels
from tru_vlm.telemetry.metrics import Metrics
from tru_vlm.telemetry.question import begin_counters
from tru_vlm.types import DoneEvent, ErrorEvent, RequestEvent
from tru_vlm.video.service import VideoService

_MAX_FORM_FIELD_BYTES = 1 << 20
_MAX_FORM_FIELDS = 64


@dataclass(frozen=True, slots=True)
class ParsedForm:
    """A received form: its text fields, and its file, which is on disk."""

    fields: dict[str, str]
    video: SpooledFile | None


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A model and where its workers are.

    Attributes:
        name: under which it is asked for.
        settings: its own.
        profile: what it accepts.
        socket_directory: where its workers listen.
        num_workers: how many there are.
    """

    name: str
    settings: Settings
    profile: ModelProfile
    socket_directory: Path
    num_workers: int


class RequestStream:
    """The events of one running request: iterate to the terminal event.

    :meth:`cancel` stops the request and lets its last events be read; :meth:`aclose` is for nobody who listens.
    """

    def __init__(self, run: RequestRun, on_end: Callable[[], None]) -> None:
        self.id = run.id
        self.request_id = run.request_id
        self._run = run
        self._ended = False
        self._task = asyncio.create_task(run.execute(), name=f"request {run.id}")
        self._task.add_done_callback(lambda _: on_end())

    @property
    def has_next(self) -> bool:
        """Whether the next event is there already."""
        return not self._ended and not self._run.events.empty()

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

    def cancel(self) -> None:
        """Stop the request, in whatever stage it is; its events then end with a done whose reason is "abort".

        Nothing happens to a request that has ended.
        """
        # Not before the task has begun: cancelled sooner, it could neither clean up nor tell.
        asyncio.get_running_loop().call_soon(self._task.cancel)

    async def aclose(self) -> None:
        """Stop the request if it runs, and wait until its resources are free.  No more events come."""
        self._ended = True
        self.cancel()
        await asyncio.wait({self._task})


class InferenceService:
    """Everything between the routes and the workers; one per HTTP process.

    Args:
        settings: the server's configuration.
        hosted: the models, in order.
        aliases: names that stand for one of several models; of each, the models' weights.
        default: the model or alias of requests that name none; by default the first model.
        metrics: where its work is counted; by default nobody looks.
    """

    def __init__(
        self,
        settings: Settings,
        hosted: Sequence[HostedModel],
        *,
        aliases: Mapping[str, Mapping[str, float]] | None = None,
        default: str | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.settings = settings
        self._metrics = metrics or Metrics()
        self.spool = Spool(
            settings.storage_dir / "spool",
            max_bytes=settings.max_spool_bytes,
            free_space_floor=settings.min_free_bytes,
        )
        self.videos = VideoService(
            frames_dir=settings.storage_dir / "frames",
            frame_cache_bytes=settings.frame_cache_bytes,
            frame_cache_memory_bytes=settings.frame_cache_memory_bytes,
            min_free_bytes=settings.min_free_bytes,
            decode_processes=settings.decode_processes,
            decode_timeout_seconds=settings.decode_timeout_seconds,
            decode_memory_bytes=settings.decode_memory_bytes,
            reader=settings.video_reader,
            device=settings.video_decode_device,
            max_video_seconds=settings.max_video_seconds,
            max_source_pixels=settings.max_source_pixels,
        )
        self.url_cache = UrlCache(spool=self.spool, max_bytes=settings.url_cache_bytes)
        self.web_guard = WebGuard(
            allow_private=settings.allow_private_urls,
            allowed_hosts=frozenset(filter(None, map(str.strip, settings.allowed_url_hosts.split(",")))),
        )
        fetcher = UrlFetcher(
            spool=self.spool,
            limits=FetchLimits(max_bytes=settings.max_upload_bytes, total_seconds=settings.fetch_timeout_seconds),
            guard=self.web_guard,
            cache=self.url_cache,
        )
        stores = build_stores(settings, self.spool)
        borrow = borrow_from(stores.videos)
        self._source = VideoSource(fetcher, self.spool, borrow, max_bytes=settings.max_upload_bytes)
        self.models = Models([self._model(host) for host in hosted], aliases or {}, default or hosted[0].name)
        self.library = LibraryService(
            settings,
            stores=stores,
            spool=self.spool,
            source=self._source,
            videos=self.videos,
            bounds_of=lambda model, video_id: self.models.of_video(self.models.name_of(model), video_id).planner.bounds,
        )
        self._schemas = SchemaCheck()
        self.rates = RateCounter(settings.redis_url.get_secret_value())
        capacity = sum(model.places.number for model in self.models)
        self._questions = Places(capacity)
        # Work in the background leaves a decode process to the others, where there are several.
        self._background_decodes = asyncio.Semaphore(max(1, settings.decode_processes - 1))
        self._plans = Places(capacity)  # of their own: a plan needs no worker, and is answered while all are taken

    def _model(self, host: HostedModel) -> Model:
        labels = model_labels(host.name)
        begin_counters(self._metrics, labels)
        steps = StepMetrics(
            inter_token=self._metrics.series(catalogue.ITL, **labels),
            batch_size=self._metrics.series(catalogue.BATCH_SIZE, **labels),
        )
        workers = WorkerPool(host.socket_directory, host.num_workers, host.settings.max_batch_size, steps)
        return Model(
            name=host.name,
            settings=host.settings,
            profile=host.profile,
            planner=Planner(host.settings, host.profile, self.videos, lambda: workers.kv_cache_tokens),
            workers=workers,
            places=Places(host.settings.max_queued_requests + host.num_workers * host.settings.max_batch_size),
        )

    @property
    def num_open(self) -> int:
        """Requests that have been opened and have not ended."""
        return self._questions.num_taken

    async def start(self) -> None:
        """Start decode processes and connect to the workers."""
        await self.rates.start()
        await self.spool.start()
        await self.library.start()
        await self.videos.start()
        for model in self.models:
            model.workers.start()

    async def close(self) -> None:
        """Stop decode processes and close the links."""
        for model in self.models:
            await model.workers.close()
        await self.videos.close()
        await self.library.close()
        await self.spool.close()
        await self.rates.close()

    async def receive_form(
        self, chunks: AsyncIterator[bytes], content_type: str, principal: Principal, *, is_plan: bool = False
    ) -> ParsedForm:
        """Read a multipart body of ``principal``, its file straight to disk.

        Raises:
            TruError: if the body is malformed or too large, or the server is full; nothing is left on disk.
        """
        if is_plan:
            self._plans.check()
        else:
            self.check_room(principal)
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

    def check_room(self, principal: Principal) -> None:
        """Refuse what :meth:`open` would refuse now, before work is done for it.

        Raises:
            OverloadedError: too many questions are open, of all or of this one.
        """
        self.rates.check_room(principal)
        self._questions.check()

    async def parse_form(self, form: ParsedForm, *, is_plan: bool = False) -> InferenceRequest:
        """Check a form's fields; its file is removed when they are wrong.

        Raises:
            InvalidRequestError: naming the field at fault.
        """
        try:
            return schemas.parse_form(form.fields, form.video, self.settings, is_plan=is_plan)
        except TruError:
            if form.video is not None:
                await self.discard(form.video)
            raise

    def parse_json(self, body: bytes, *, is_plan: bool = False) -> InferenceRequest:
        """Check a JSON body.

        Raises:
            InvalidRequestError: naming the field at fault.
        """
        return schemas.parse_json(body, self.settings, is_plan=is_plan)

    def check_body(self, body: schemas.UrlRequestBody) -> InferenceRequest:
        """Check a body whose fields are right against this server's limits.

        Raises:
            InvalidRequestError: naming the field at fault.
        """
        return schemas.build_request(body, self.settings)

    def parse_chat(self, body: bytes) -> ChatRequest:
        """Check the JSON body of a chat completion.

        Raises:
            InvalidRequestError: naming the field at fault.
        """
        return parse_chat(body, self.settings)

    def check_source(self, source: MediaSource, param: str) -> None:
        """Refuse a video's address that leads nowhere, as far as can be told without going there.

        Raises:
            FetchError: the URL must not be fetched.
        """
        self._source.check(source, param=param)

    def parse_responses(self, body: bytes) -> ResponsesRequest:
        """Check the JSON body of a response.  Raises as :meth:`parse_chat`."""
        return parse_responses(body, self.settings)

    async def local_file(self, source: MediaSource, *, param: str, owner: str) -> SpooledFile:
        """A video as a file, which the caller discards.

        Raises:
            TruError: it cannot be had, must not be, or is too large.
        """
        return await self._source.file(source, param=param, owner=owner)

    async def discard(self, *files: SpooledFile) -> None:
        """Remove uploaded files that will not be used."""
        for file in files:
            await self.spool.remove(file)

    async def open(self, request: InferenceRequest, principal: Principal) -> RequestStream:
        """Start work on a request of ``principal``.

        Raises:
            NotFoundError: there is no such model; its files are removed.
            OverloadedError: if too many are open, of all or of this one; its files are removed.
        """
        try:
            run = RequestRun(
                request,
                principal,
                models=self.models,
                timeout_seconds=self.settings.request_timeout_seconds,
                videos=self.videos,
                source=self._source,
                spool=self.spool,
                schemas=self._schemas,
                rates=self.rates,
                metrics=self._metrics,
                background_decodes=self._background_decodes,
            )
            self.rates.check_room(principal)
            self._questions.take(is_background=request.is_background)
        except TruError:
            await self.discard(*request.files)
            raise
        self.rates.enter(principal)

        def on_end() -> None:
            self._questions.give_back()
            self.rates.leave(principal)

        return RequestStream(run, on_end)

    async def plan(self, request: InferenceRequest, principal: Principal) -> PlanAnswer:
        """What a request with one video or image would take, without running it; its file is removed.

        Raises:
            TruError: whatever is wrong with the request, except that it does not fit.
        """
        async with contextlib.AsyncExitStack() as held:
            held.push_async_callback(self.discard, *request.files)
            (item,) = request.media
            name = self.models.name_of(request.model)
            self._plans.take()
            held.callback(self._plans.give_back)
            try:
                async with asyncio.timeout(self.settings.request_timeout_seconds):
                    file = await self._source.file(item.source, param=item.param, owner=principal.tenant)
                    held.push_async_callback(self.spool.remove, file)
                    model = self.models.at_once(name, request.routing_key)
                    model = model or self.models.by_content(name, request, [file])
                    probe = await self.videos.inspect(file, item.param, principal.cache_salt)
                    return await model.planner.answer(
                        probe, request, size_bytes=file.size_bytes, model=name, variant=model.name
                    )
            except TimeoutError:
                raise timed_out(self.settings.request_timeout_seconds) from None
