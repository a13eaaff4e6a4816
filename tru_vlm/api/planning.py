"""What a request would take: its frames, its tokens, and whether they fit.  Needs no worker and decodes nothing.

A plan rests on what a file's header says; what was really decoded is counted again before a worker gets it.  ``fit``
changes nothing for a request that fits: its frames are the same ones, also in the cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from tru_vlm.api.schemas import InferenceRequest
from tru_vlm.errors import ContextLengthError
from tru_vlm.processor.profile import ModelProfile
from tru_vlm.processor.prompt import MediaLayout, count_prompt_tokens
from tru_vlm.settings import Settings
from tru_vlm.types import FramesRef, MediaKind, VideoInfo
from tru_vlm.video.media import MediaProbe, SamplingBounds, SamplingPlan, VideoAllowance
from tru_vlm.video.service import VideoService

_ANSWER_SHARE = 4
"""With ``fit``, an answer of no stated length has room for the default length, but for no more than this part of the
context."""

_ALLOWANCE_BITS = 6
"""What a fitted video may take is rounded down to so many significant bits, by less than a thirty-second, so that two
questions of about the same length see the same frames, and the second one finds them in the cache."""


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What a request takes of the context.

    Attributes:
        text: tokens of the prompt and of the frames' timestamps.
        video: visual tokens.
        answer: most tokens of the answer: `max_tokens`, or, where the request leaves it open, what the context has
            left, up to the server's default; at least 1.
        total: all three together.
        context: most tokens that the server holds for one request.
    """

    text: int
    video: int
    answer: int
    total: int
    context: int

    @property
    def fits(self) -> bool:
        """Whether there is room for all of it."""
        return self.total <= self.context


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """How a request would be run.

    Attributes:
        probe: the file, as far as is known.
        sampling: the frames.
        tokens: what they and the rest take.
        allowance: what the frames were made to fit into; None if they were not.
    """

    probe: MediaProbe
    sampling: SamplingPlan
    tokens: TokenCounts
    allowance: VideoAllowance | None = None


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What a file says it holds; nothing has been decoded for it.

    Attributes:
        kind: "video" or "image".
        container, codec: how it is packed and coded.
        size_bytes: of the file.
        height, width: as shown, after rotation, pixels.
        rotation: clockwise turn that was counted in, degrees.
        duration_seconds, source_fps: length and average frame rate; None for images.
        num_frames: in the file.
    """

    kind: MediaKind
    container: str
    codec: str
    size_bytes: int
    height: int
    width: int
    rotation: int
    duration_seconds: float | None
    source_fps: float | None
    num_frames: int | None


@dataclass(frozen=True, slots=True)
class FittedPlan:
    """What would be sampled with `fit`."""

    sampling: SamplingPlan
    tokens: TokenCounts


@dataclass(frozen=True, slots=True)
class PlanAnswer:
    """The answer to a request for a plan.

    Attributes:
        media: the file.
        sampling: what would be sampled; times and counts are those of the file's header.
        tokens: what the request takes of the context.
        fits: whether the question could be asked so.
        refusal: if it could not, what would be answered.
        fitted: if it could not, what would be sampled with `fit`; null if not even that fits.
    """

    media: MediaInfo
    sampling: SamplingPlan
    tokens: TokenCounts
    fits: bool
    refusal: str | None = None
    fitted: FittedPlan | None = None


class Planner:
    """Plans requests.

    Args:
        settings: the server's configuration.
        profile: what the model accepts.
        videos: does the arithmetic of frames.
        kv_cache_tokens: how many tokens a worker can hold, or None while that is not known.
    """

    def __init__(
        self,
        settings: Settings,
        profile: ModelProfile,
        videos: VideoService,
        kv_cache_tokens: Callable[[], int | None],
    ) -> None:
        self.bounds = sampling_bounds(settings, profile)
        self._settings = settings
        self._profile = profile
        self._videos = videos
        self._kv_cache_tokens = kv_cache_tokens

    @property
    def context_tokens(self) -> int:
        """Most tokens of one request: the model's context, or the KV cache where it is smaller."""
        kv_cache_tokens = self._kv_cache_tokens() or self._settings.kv_cache_tokens or self._profile.context_tokens
        return min(self._profile.context_tokens, kv_cache_tokens)

    @property
    def knows_kv_cache(self) -> bool:
        """Whether the KV cache is counted in; else no worker has sized it yet."""
        return bool(self._kv_cache_tokens() or self._settings.kv_cache_tokens)

    async def plan(self, probe: MediaProbe, request: InferenceRequest) -> RequestPlan:
        """What would be sampled and what it takes, which may be more than there is.

        Raises:
            InvalidRequestError: the request's options contradict each other, the file or the ceilings.
        """
        # A long prompt takes tens of milliseconds: not on the event loop.
        return await asyncio.to_thread(self._fit_or_plan if request.video_params.fit else self._plan, probe, request)

    async def plan_again(self, plan: RequestPlan, found: VideoInfo, request: InferenceRequest) -> RequestPlan:
        """A plan that fits, for a file whose header told of less than was found in it."""
        return await asyncio.to_thread(self._fit, _corrected(plan.probe, found), request)

    async def count(self, ref: FramesRef, request: InferenceRequest) -> TokenCounts:
        """What a request takes with the frames that were decoded for it."""
        layout = MediaLayout(ref.kind, ref.num_frames, ref.height, ref.width, ref.timestamps_seconds)
        return await asyncio.to_thread(self._count, request, layout)

    async def answer(self, probe: MediaProbe, request: InferenceRequest, *, size_bytes: int) -> PlanAnswer:
        """The plan as clients read it.

        Raises:
            InvalidRequestError: as :meth:`plan`.
        """
        plan = await self.plan(probe, request)
        media = _media_info(probe, size_bytes)
        if plan.tokens.fits:
            return PlanAnswer(media, plan.sampling, plan.tokens, fits=True)
        refusal = self.refusal(plan.tokens, request).message
        fitted = None
        if not request.video_params.fit:
            fitting = replace(request, video_params=replace(request.video_params, fit=True))
            other = await self.plan(probe, fitting)
            fitted = FittedPlan(other.sampling, other.tokens) if other.tokens.fits else None
        return PlanAnswer(media, plan.sampling, plan.tokens, fits=False, refusal=refusal, fitted=fitted)

    def refusal(self, tokens: TokenCounts, request: InferenceRequest) -> ContextLengthError:
        """The error for a request that does not fit: the numbers, and what can be done."""
        holder = "model's context" if tokens.context == self._profile.context_tokens else "KV cache"
        text = (
            f"{tokens.text} tokens of prompt, {tokens.video} of video and {tokens.answer} of answer make "
            f"{tokens.total}; the {holder} holds {tokens.context}. "
        )
        # What could be made smaller decides which field is to blame.
        if request.video_params.fit:
            text += "These are the fewest and smallest frames: ask less, or lower max_tokens."
            param = "prompt" if tokens.text >= tokens.answer else "generation_params.max_tokens"
        else:
            text += "Ask less, sample fewer frames or pixels (with fit, the server does), or lower max_tokens."
            param = "prompt" if tokens.text >= tokens.video else "video_params.max_frames"
        return ContextLengthError(text, param=param)

    # Below: in threads.

    def _fit_or_plan(self, probe: MediaProbe, request: InferenceRequest) -> RequestPlan:
        plan = self._plan(probe, request)
        if plan.tokens.text + plan.tokens.video + self._fair_answer(request) <= plan.tokens.context:
            return plan
        return self._fit(probe, request)

    def _fit(self, probe: MediaProbe, request: InferenceRequest) -> RequestPlan:
        text, timestamp = self._text_tokens(probe, request)
        left = max(0, self.context_tokens - text - self._fair_answer(request))
        step = 1 << max(0, left.bit_length() - _ALLOWANCE_BITS)
        return self._plan(probe, request, VideoAllowance(left // step * step, timestamp))

    def _fair_answer(self, request: InferenceRequest) -> int:
        most = request.generation.max_tokens
        return min(most, self.context_tokens // _ANSWER_SHARE) if request.max_tokens_is_default else most

    def _plan(
        self, probe: MediaProbe, request: InferenceRequest, allowance: VideoAllowance | None = None
    ) -> RequestPlan:
        sampling = self._videos.plan(
            probe, request.video_params, self.bounds, allowance=allowance, param=request.video_param
        )
        times = sampling.frame_timestamps if sampling.kind == "video" else ()
        layout = MediaLayout(sampling.kind, sampling.num_frames, sampling.height, sampling.width, times)
        return RequestPlan(probe, sampling, self._count(request, layout), allowance)

    def _count(self, request: InferenceRequest, layout: MediaLayout) -> TokenCounts:
        count = count_prompt_tokens(self._profile, request.messages, [layout])
        context, answer = self.context_tokens, request.generation.max_tokens
        if request.max_tokens_is_default:
            answer = max(1, min(answer, context - count.prompt_tokens))
        return TokenCounts(
            text=count.prompt_tokens - count.visual_tokens,
            video=count.visual_tokens,
            answer=answer,
            total=count.prompt_tokens + answer,
            context=context,
        )

    def _text_tokens(self, probe: MediaProbe, request: InferenceRequest) -> tuple[int, int]:
        """Tokens of the text without timestamps, and the most that one timestamp takes.

        The last time has the most tokens: Qwen's tokenizers make one of each digit.
        """
        side, pair = self._profile.pixel_factor, self._profile.temporal_patch_size

        def text(num_frames: int) -> int:
            times = (probe.duration_seconds or 0.0,) * num_frames if probe.kind == "video" else ()
            layout = MediaLayout(probe.kind, num_frames, side, side, times)
            count = count_prompt_tokens(self._profile, request.messages, [layout])
            return count.prompt_tokens - count.visual_tokens

        if probe.kind == "image":
            return text(1), 0
        timestamp = text(2 * pair) - text(pair)
        return text(pair) - timestamp, timestamp


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


def _corrected(probe: MediaProbe, found: VideoInfo) -> MediaProbe:
    duration, rate = found.duration_seconds, found.source_fps
    if duration is None or rate is None:
        return probe
    return replace(probe, duration_seconds=duration, average_fps=rate, num_frames=round(duration * rate))


def _media_info(probe: MediaProbe, size_bytes: int) -> MediaInfo:
    return MediaInfo(
        kind=probe.kind,
        container=probe.container,
        codec=probe.codec,
        size_bytes=size_bytes,
        height=probe.height,
        width=probe.width,
        rotation=probe.rotation,
        duration_seconds=probe.duration_seconds,
        source_fps=probe.average_fps,
        num_frames=probe.num_frames,
    )
