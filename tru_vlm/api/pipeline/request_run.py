"""The stages of one request: fetch, choose the model, inspect, plan, decode, queue, generate.

A conversation's videos and images pass each of the first four together, a few at a time.

Whatever happens, :meth:`RequestRun.execute` emits exactly one terminal event, and has given back the request's files,
frames and row by then.  Cancelling its task is the one way to stop a request, in whatever stage it is: the terminal
event is then a done with the finish reason "abort" and the text so far.  It never sees HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence

from tru_vlm.api.inference_request import InferenceRequest, MediaRequest
from tru_vlm.api.pipeline.frames_url import frames_url
from tru_vlm.api.pipeline.models import Model, Models
from tru_vlm.api.pipeline.moments import find_moments
from tru_vlm.api.pipeline.planning import MediaPlan, RequestPlan
from tru_vlm.api.pipeline.schema_check import SchemaCheck
from tru_vlm.api.pipeline.side_by_side import side_by_side
from tru_vlm.api.security.rate_limits import RateCounter
from tru_vlm.api.workers.pool import QueuePosition
from tru_vlm.engine.base import EngineTimings, FailEvent, FinishEvent, TokenEvent
from tru_vlm.errors import ErrorInfo, InternalError, RequestTimeoutError, TruError
from tru_vlm.intake.source import VideoSource, is_remote
from tru_vlm.intake.spool import Spool, SpooledFile
from tru_vlm.plans import TokenCounts
from tru_vlm.principal import Principal
from tru_vlm.telemetry.exchange import on_behalf_of
from tru_vlm.telemetry.metrics import Metrics
from tru_vlm.telemetry.question import QuestionRecord
from tru_vlm.telemetry.spans import Span
from tru_vlm.types import (
    Answer,
    DeltaEvent,
    DoneEvent,
    ErrorEvent,
    FinishReason,
    GenerationParams,
    RequestEvent,
    Stage,
    StatusEvent,
    Timings,
    Usage,
    VideoEvent,
    VideoInfo,
    WorkerRequest,
)
from tru_vlm.video.media import MediaProbe
from tru_vlm.video.service import FramesLease, VideoService

logger = logging.getLogger(__name__)

_NO_TIMINGS = EngineTimings(queue=0.0, preprocess=0.0, prefill=0.0)


class _Failed(Exception):  # noqa: N818 - carries an answer, not a fault
    """The worker reported an error for this request."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.message)
        self.info = info


class _Clock:
    """Seconds by stage, counted from receipt of the request; each stage is a span too.

    Args:
        span: of the request.

    Attributes:
        stages: those before the engine, by the names of :class:`Timings`, and "probe".
    """

    def __init__(self, span: Span) -> None:
        self._span = span
        self._received = time.monotonic()
        self.stages: dict[str, float] = {}
        self._first_token: float | None = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to the stage ``name``."""
        begin = time.monotonic()
        span = self._span.child(name)
        try:
            yield
        finally:
            span.end()
            self.stages[name] = self.stages.get(name, 0.0) + time.monotonic() - begin

    def first_token(self) -> float | None:
        """A token was generated; at the first call, the only one that counts, the seconds until then."""
        if self._first_token is not None:
            return None
        self._first_token = time.monotonic()
        return self._first_token - self._received

    def finish(self, inside: EngineTimings) -> Timings:
        """The timings of the whole request; what the engine measured inside is added."""
        now = time.monotonic()
        return Timings(
            queue=self.stages.get("queue", 0.0) + inside.queue,
            fetch=self.stages.get("fetch", 0.0),
            video_decode=self.stages.get("video_decode", 0.0),
            preprocess=inside.preprocess,
            prefill=inside.prefill,
            time_to_first_token=(self._first_token or now) - self._received,
            total=now - self._received,
        )


class RequestRun:
    """One request on its way.

    Attributes:
        id: unique on this server.
        request_id: what the client calls the exchange that it came with, or our name for it; in every line of the log.
        model_name: the model or alias that was asked for.
        events: what a client is told, in order.
        accepted: set once every check that needs no decoding has passed.
    """

    def __init__(
        self,
        request: InferenceRequest,
        principal: Principal,
        *,
        models: Models,
        timeout_seconds: float,
        videos: VideoService,
        source: VideoSource,
        spool: Spool,
        schemas: SchemaCheck,
        background_decodes: asyncio.Semaphore,
        rates: RateCounter,
        metrics: Metrics,
    ) -> None:
        self.model_name = models.name_of(request.model)
        self._record = QuestionRecord(metrics, self.model_name)
        self.id = self._record.id
        self.request_id = self._record.origin.request_id
        self.events: asyncio.Queue[RequestEvent] = asyncio.Queue()
        self.accepted = asyncio.Event()
        self._request = request
        self._models = models
        self._timeout_seconds = timeout_seconds
        self._videos = videos
        self._source = source
        self._spool = spool
        self._schemas = schemas
        self._decoding: contextlib.AbstractAsyncContextManager[None] = (
            background_decodes if request.is_background else contextlib.nullcontext()
        )
        self._principal = principal
        self._rates = rates
        self._at: Stage = "queued"
        self._clock = _Clock(self._record.span)
        self._model: Model | None = None
        self._video: VideoInfo | None = None
        self._text: list[str] = []
        self._usage = Usage(0, 0, 0)

    @property
    def variant(self) -> str | None:
        """The name of the model that answers; None before it is chosen."""
        return self._model.name if self._model else None

    async def execute(self) -> None:
        """Run every stage.  The only place where a request's errors end."""
        with on_behalf_of(self._record.origin):
            await self._execute()

    async def _execute(self) -> None:
        self._record.opened()
        try:
            async with asyncio.timeout(self._timeout_seconds):
                answer = await self._answer()
                self._record.answered(answer, self._clock.stages)
                self._emit(DoneEvent(answer))
        except asyncio.CancelledError:
            self._record.aborted(self._at)
            self._emit(DoneEvent(self._finish("abort", self._usage, _NO_TIMINGS)))
            raise
        except TimeoutError:
            self._fail(timed_out(self._timeout_seconds).info())
        except TruError as error:
            self._fail(error.info())
        except _Failed as error:
            self._fail(error.info)
        except Exception:
            logger.exception("request %s failed", self.request_id)
            self._fail(InternalError().info())

    async def _answer(self) -> Answer:
        async with contextlib.AsyncExitStack() as held:
            for file in self._request.files:  # before anything is awaited: they are here already
                held.push_async_callback(self._spool.remove, file)
            model = self._models.at_once(self.model_name, self._request.routing_key)
            if model is not None:
                self._take_place(model, held)
            files = await self._local_files(held)
            if model is None:
                model = self._models.by_content(self.model_name, self._request, files)
                self._take_place(model, held)
            await self._check_schema()
            plan = await self._plan(model, files)
            self.accepted.set()
            leases, tokens = await self._decode(model, files, plan, held)
            if not tokens.fits and self._request.fits:
                # There is more in a file than its header told, or less in the KV cache than was thought.
                plan = await model.planner.plan_again(plan, [lease.info for lease in leases], self._request)
                for lease in leases:
                    lease.release()
                leases, tokens = await self._decode(model, files, plan, held)
            self._check_fits(model, tokens)
            # The sources are not needed any more; a long answer must not hold gigabytes of disk.
            for file in files:
                await self._spool.remove(file)
            # A length that was left open becomes what the context has left.
            generation = dataclasses.replace(self._request.generation, max_tokens=tokens.answer)
            queued = held.enter_context(contextlib.ExitStack())
            return await self._generate(model, leases, generation, queued)

    def _take_place(self, model: Model, held: contextlib.AsyncExitStack) -> None:
        """The model is chosen: it answers this request, or nobody does.

        Raises:
            OverloadedError: if too many wait for it.
        """
        self._model = model
        self._record.chosen(model.name)
        model.places.take(is_background=self._request.is_background)
        held.callback(model.places.give_back)

    async def _check_schema(self) -> None:
        """Refuse a schema that the answer could not follow.

        Raises:
            InvalidRequestError: naming the field.
        """
        schema = self._request.generation.json_schema
        if schema is not None:
            await self._schemas.check(schema, param=self._request.names.response_format)

    async def _local_files(self, held: contextlib.AsyncExitStack) -> list[SpooledFile]:
        """The media as files, which ``held`` removes."""

        async def fetch(item: MediaRequest) -> SpooledFile:
            file = await self._source.file(item.source, param=item.param, owner=self._principal.tenant)
            held.push_async_callback(self._spool.remove, file)
            return file

        media = self._request.media
        if not any(is_remote(item.source) for item in media):
            return await side_by_side(fetch, media)
        self._stage("fetching")
        with self._clock.stage("fetch"):
            return await side_by_side(fetch, media)

    async def _plan(self, model: Model, files: Sequence[SpooledFile]) -> RequestPlan:
        """Refuse, before any work, what can never fit.

        Raises:
            InvalidRequestError: with the numbers.
        """

        async def inspect(item: tuple[SpooledFile, MediaRequest]) -> MediaProbe:
            return await self._videos.inspect(item[0], item[1].param, self._principal.cache_salt)

        with self._clock.stage("probe"):
            probes = await side_by_side(inspect, list(zip(files, self._request.media, strict=True)))
        plan = await model.planner.plan(probes, self._request)
        self._check_fits(model, plan.tokens)
        param = self._request.media[0].param if self._request.media else None
        seconds = sum(map(_seconds_of, probes, self._request.media))
        await self._rates.count_video(self._principal, seconds, param=param)
        self._usage = Usage(plan.tokens.text + plan.tokens.video, plan.tokens.video, 0)
        return plan

    def _check_fits(self, model: Model, tokens: TokenCounts) -> None:
        if not tokens.fits:
            raise model.planner.refusal(tokens, self._request)

    async def _decode(
        self, model: Model, files: Sequence[SpooledFile], plan: RequestPlan, held: contextlib.AsyncExitStack
    ) -> tuple[list[FramesLease], TokenCounts]:
        """The frames, which ``held`` releases, and what the request takes with them."""

        async def decode(item: tuple[SpooledFile, MediaRequest, MediaPlan]) -> FramesLease:
            file, media, planned = item
            with media.named():
                lease = await self._videos.frames(
                    file,
                    planned.probe,
                    media.params,
                    model.planner.bounds,
                    allowance=planned.allowance,
                    param=media.param,
                    cache_salt=self._principal.cache_salt,
                )
            held.callback(lease.release)
            return lease

        if files:
            self._stage("decoding")
        async with self._decoding:
            with self._clock.stage("video_decode"):
                leases = await side_by_side(decode, list(zip(files, self._request.media, plan.media, strict=True)))
        if self._request.fits and not model.planner.knows_kv_cache:
            self._stage("waiting")
            await model.workers.met()  # with the model's size of it, it can still be made to fit
        return leases, await model.planner.count([lease.ref for lease in leases], self._request, plan)

    async def _generate(
        self,
        model: Model,
        leases: Sequence[FramesLease],
        generation: GenerationParams,
        queued: contextlib.ExitStack,
    ) -> Answer:
        for lease in leases:
            url = frames_url(lease.ref.content_key)
            video = dataclasses.replace(lease.info, frames_url=url)
            self._video = self._video or video
            self._emit(VideoEvent(self.id, video))
        self._record.sampled([lease.info for lease in leases])
        refs = tuple(lease.ref for lease in leases)
        request = WorkerRequest(
            self.id, self._request.messages, refs, generation, self._principal.cache_salt, self._record.origin
        )
        queued.enter_context(self._clock.stage("queue"))
        async with contextlib.aclosing(model.workers.run(request, is_background=self._request.is_background)) as events:
            async for event in events:
                match event:
                    case QueuePosition(0):
                        queued.close()
                        self._stage("prefilling")
                    case QueuePosition(ahead):
                        self._stage("waiting", queue_position=ahead)
                    case TokenEvent():
                        if (seconds := self._clock.first_token()) is not None:
                            self._record.first_token(seconds)
                            self._stage("generating")
                        generated = self._usage.completion_tokens + event.num_tokens
                        self._usage = dataclasses.replace(self._usage, completion_tokens=generated)
                        if event.text:
                            self._text.append(event.text)
                            self._emit(DeltaEvent(self.id, event.text))
                    case FailEvent():
                        raise _Failed(self._named(event.error))
                    case FinishEvent():
                        return self._finish(event.finish_reason, event.usage, event.timings)
        raise InternalError

    def _named(self, error: ErrorInfo) -> ErrorInfo:
        """An engine's error with the body's own name of the field at fault."""
        if error.param != "logit_bias":
            return error
        return dataclasses.replace(error, param=self._request.names.logit_bias)

    def _finish(self, reason: FinishReason, usage: Usage, timings: EngineTimings) -> Answer:
        text = "".join(self._text)
        return Answer(
            id=self.id,
            model=self.model_name,
            text=text,
            finish_reason=reason,
            usage=usage,
            video=self._video,
            timings=self._clock.finish(timings),
            moments=find_moments(text, self._video),
            variant=self.variant,
        )

    def _stage(self, stage: Stage, queue_position: int | None = None) -> None:
        self._at = stage
        self._emit(StatusEvent(self.id, stage, queue_position))

    def _fail(self, info: ErrorInfo) -> None:
        self._record.failed(info)
        self._emit(ErrorEvent(self.request_id, info))

    def _emit(self, event: RequestEvent) -> None:
        self.events.put_nowait(event)


def _seconds_of(probe: MediaProbe, media: MediaRequest) -> float:
    """How much of a video is looked at; 0 for an image, and where the file does not tell its length."""
    if probe.duration_seconds is None:
        return 0.0
    end = probe.duration_seconds if media.params.video_end is None else media.params.video_end
    return max(0.0, min(end, probe.duration_seconds) - (media.params.video_start or 0.0))


def timed_out(seconds: float) -> RequestTimeoutError:
    """The error of a request that took longer than ``seconds``."""
    return RequestTimeoutError(f"The request took longer than the limit of {seconds:g} s.")
