"""The stages of one request: fetch, inspect, plan, decode, queue, generate.

Whatever happens, :meth:`RequestRun.execute` emits exactly one terminal event (unless it is cancelled: then nobody
listens) and gives back the request's file, frames and row.  It never sees HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
import uuid
from collections.abc import Iterator

from tru_vlm.api.schema_check import SchemaCheck
from tru_vlm.api.schemas import InferenceRequest
from tru_vlm.api.workers import QueuePosition, WorkerPool
from tru_vlm.engine.base import FailEvent, FinishEvent, TokenEvent
from tru_vlm.errors import ContextLengthError, ErrorInfo, InternalError, RequestTimeoutError, TruError
from tru_vlm.intake.data_uri import is_data_uri, spool_data_uri
from tru_vlm.intake.fetch import UrlFetcher
from tru_vlm.intake.spool import Spool, SpooledFile
from tru_vlm.processor.profile import ModelProfile
from tru_vlm.processor.prompt import MediaLayout, PromptTokenCount, count_prompt_tokens
from tru_vlm.settings import Settings
from tru_vlm.types import (
    Answer,
    DeltaEvent,
    DoneEvent,
    ErrorEvent,
    FramesRef,
    GenerationParams,
    MediaPart,
    Message,
    RequestEvent,
    Stage,
    StatusEvent,
    TextPart,
    Timings,
    VideoEvent,
    VideoInfo,
    WorkerRequest,
)
from tru_vlm.video.media import MediaProbe, SamplingBounds, SamplingPlan
from tru_vlm.video.service import FramesLease, VideoService

logger = logging.getLogger(__name__)


class _Failed(Exception):  # noqa: N818 - carries an answer, not a fault
    """The worker reported an error for this request."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.message)
        self.info = info


class _Clock:
    """Seconds by stage, counted from receipt of the request."""

    def __init__(self) -> None:
        self._received = time.monotonic()
        self._stages: dict[str, float] = {}
        self._first_token: float | None = None

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a block to the field ``name`` of :class:`Timings`."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._stages[name] = self._stages.get(name, 0.0) + time.monotonic() - begin

    def first_token(self) -> bool:
        """A token was generated; True at the first call, the only one that counts."""
        is_first = self._first_token is None
        if is_first:
            self._first_token = time.monotonic()
        return is_first

    def finish(self, finished: FinishEvent) -> Timings:
        """The timings of the whole request; what the engine measured inside is added."""
        now = time.monotonic()
        inside = finished.timings
        return Timings(
            queue=self._stages.get("queue", 0.0) + inside.queue,
            fetch=self._stages.get("fetch", 0.0),
            video_decode=self._stages.get("video_decode", 0.0),
            preprocess=inside.preprocess,
            prefill=inside.prefill,
            time_to_first_token=(self._first_token or now) - self._received,
            total=now - self._received,
        )


class RequestRun:
    """One request on its way.

    Attributes:
        id: unique on this server.
        events: what a client is told, in order.
        accepted: set once every check that needs no decoding has passed.
    """

    def __init__(
        self,
        request: InferenceRequest,
        *,
        model_name: str,
        settings: Settings,
        profile: ModelProfile,
        videos: VideoService,
        workers: WorkerPool,
        fetcher: UrlFetcher,
        spool: Spool,
        schemas: SchemaCheck,
    ) -> None:
        self.id = f"req-{uuid.uuid4().hex}"
        self.events: asyncio.Queue[RequestEvent] = asyncio.Queue()
        self.accepted = asyncio.Event()
        self._request = request
        self._model_name = model_name
        self._settings = settings
        self._profile = profile
        self._videos = videos
        self._workers = workers
        self._fetcher = fetcher
        self._spool = spool
        self._schemas = schemas
        self._bounds = sampling_bounds(settings, profile)
        self._clock = _Clock()

    async def execute(self) -> None:
        """Run every stage.  The only place where a request's errors end."""
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                self._emit(DoneEvent(await self._answer()))
        except TimeoutError:
            seconds = self._settings.request_timeout_seconds
            self._fail(RequestTimeoutError(f"The request took longer than the limit of {seconds:g} s.").info())
        except TruError as error:
            self._fail(error.info())
        except _Failed as error:
            self._fail(error.info)
        except Exception:
            logger.exception("request %s failed", self.id)
            self._fail(InternalError().info())

    async def _answer(self) -> Answer:
        async with contextlib.AsyncExitStack() as held:
            file = await self._local_file()
            held.push_async_callback(self._spool.remove, file)
            await self._check_schema()
            probe = await self._videos.inspect(file, self._request.video_param)
            plan = self._videos.plan(probe, self._request.video_params, self._bounds)
            await self._check_context(plan)
            self.accepted.set()
            lease = await self._decode(file, probe)
            held.callback(lease.release)
            # The source is not needed any more; a long answer must not hold gigabytes of disk.
            await self._spool.remove(file)
            return await self._generate(lease)

    async def _check_schema(self) -> None:
        """Refuse a schema that the answer could not follow.

        Raises:
            InvalidRequestError: naming the field.
        """
        schema = self._request.generation.json_schema
        if schema is not None:
            await self._schemas.check(schema, param=self._request.response_format_param)

    async def _local_file(self) -> SpooledFile:
        """The video as a file: the upload, or what its URL or data URI holds."""
        if self._request.file is not None:
            return self._request.file
        url = self._request.video_url
        assert url is not None  # noqa: S101 - the door lets exactly one of the two in
        if is_data_uri(url):
            limit = self._settings.max_upload_bytes
            return await spool_data_uri(url, spool=self._spool, max_bytes=limit)
        self._stage("fetching")
        with self._clock.stage("fetch"):
            return await self._fetcher.fetch(url, param="video_url")

    async def _check_context(self, plan: SamplingPlan) -> None:
        """Refuse, before any work, what can never fit into the model's context.

        Raises:
            ContextLengthError: with the numbers.
        """
        count = await self._count_tokens(_planned_layout(plan))
        prompt_tokens, video_tokens = count.prompt_tokens, count.visual_tokens
        wanted = 1 if self._request.max_tokens_is_default else self._request.generation.max_tokens
        context = self._profile.context_tokens
        if prompt_tokens + wanted <= context:
            return
        text_tokens = prompt_tokens - video_tokens
        # What could be made smaller decides which field is to blame.
        param = "prompt" if text_tokens >= video_tokens else "video_params.max_frames"
        raise ContextLengthError(
            f"{text_tokens} tokens of prompt, {video_tokens} of video and {wanted} of answer make "
            f"{prompt_tokens + wanted}; the model's context holds {context}. "
            "Ask less, sample fewer frames or pixels, or lower max_tokens.",
            param=param,
        )

    async def _decode(self, file: SpooledFile, probe: MediaProbe) -> FramesLease:
        self._stage("decoding")
        with self._clock.stage("video_decode"):
            params = self._request.video_params
            return await self._videos.frames(file, probe, params, self._bounds, param=self._request.video_param)

    async def _generate(self, lease: FramesLease) -> Answer:
        video = dataclasses.replace(lease.info, frames_url=f"/v1/frames/{lease.ref.content_key}/{{index}}.jpg")
        self._emit(VideoEvent(self.id, video))
        request = WorkerRequest(self.id, self._messages(), (lease.ref,), await self._generation(lease))
        text: list[str] = []
        queued = contextlib.ExitStack()
        queued.enter_context(self._clock.stage("queue"))
        async with contextlib.aclosing(self._workers.run(request)) as events:
            async for event in events:
                match event:
                    case QueuePosition(0):
                        queued.close()
                        self._stage("prefilling")
                    case QueuePosition(ahead):
                        self._stage("waiting", queue_position=ahead)
                    case TokenEvent():
                        if self._clock.first_token():
                            self._stage("generating")
                        if event.text:
                            text.append(event.text)
                            self._emit(DeltaEvent(self.id, event.text))
                    case FailEvent():
                        raise _Failed(event.error)
                    case FinishEvent():
                        return self._finish(event, "".join(text), video)
        raise InternalError

    def _finish(self, finished: FinishEvent, text: str, video: VideoInfo) -> Answer:
        return Answer(
            id=self.id,
            model=self._model_name,
            text=text,
            finish_reason=finished.finish_reason,
            usage=finished.usage,
            video=video,
            timings=self._clock.finish(finished),
        )

    async def _count_tokens(self, layout: MediaLayout) -> PromptTokenCount:
        # A long prompt takes tens of milliseconds: not on the event loop.
        return await asyncio.to_thread(count_prompt_tokens, self._profile, self._messages(), [layout])

    def _messages(self) -> tuple[Message, ...]:
        return (Message("user", (MediaPart(0), TextPart(self._request.prompt))),)

    async def _generation(self, lease: FramesLease) -> GenerationParams:
        """The generation parameters; a defaulted ``max_tokens`` shrinks to what the context has left."""
        generation = self._request.generation
        if not self._request.max_tokens_is_default:
            return generation
        left = self._profile.context_tokens - (await self._count_tokens(_layout(lease.ref))).prompt_tokens
        return dataclasses.replace(generation, max_tokens=max(1, min(generation.max_tokens, left)))

    def _stage(self, stage: Stage, queue_position: int | None = None) -> None:
        self._emit(StatusEvent(self.id, stage, queue_position))

    def _fail(self, info: ErrorInfo) -> None:
        self._emit(ErrorEvent(self.id, info))

    def _emit(self, event: RequestEvent) -> None:
        self.events.put_nowait(event)


def sampling_bounds(settings: Settings, profile: ModelProfile) -> SamplingBounds:
    """What the model and the server allow a sampling to be."""
    return SamplingBounds(
        patch_size=profile.patch_size,
        min_pixels=profile.frame_min_pixels,
        max_pixels=profile.frame_max_pixels,
        image_min_pixels=profile.image_min_pixels,
        image_max_pixels=profile.image_max_pixels,
        default_fps=settings.default_video_fps,
        default_max_frames=settings.default_max_frames,
        max_frames=settings.max_video_frames,
    )


def _planned_layout(plan: SamplingPlan) -> MediaLayout:
    times = plan.frame_timestamps if plan.kind == "video" else ()
    return MediaLayout(plan.kind, plan.num_frames, plan.height, plan.width, times)


def _layout(ref: FramesRef) -> MediaLayout:
    return MediaLayout(ref.kind, ref.num_frames, ref.height, ref.width, ref.timestamps_seconds)
