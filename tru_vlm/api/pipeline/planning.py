"""What a request would take: its frames, its tokens, and whether they fit.  Needs no worker and decodes nothing.

A plan rests on what a file's header says; what was really decoded is counted again before a worker gets it.  ``fit``
changes nothing for a request that fits: its frames are the same ones, also in the cache.

Of several videos and images, those with ``fit`` share what the rest leaves (:mod:`tru_vlm.api.pipeline.token_shares`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tru_vlm.api.inference_request import InferenceRequest, MediaRequest
from tru_vlm.api.pipeline.token_shares import share_tokens
from tru_vlm.errors import ContextLengthError
from tru_vlm.plans import FittedPlan, MediaInfo, PlanAnswer, SamplingPlan, TokenCounts
from tru_vlm.processor.profile import ModelProfile
from tru_vlm.processor.prompt import MediaLayout, PromptTokenCount, count_prompt_tokens
from tru_vlm.settings import Settings
from tru_vlm.types import FramesRef, VideoInfo
from tru_vlm.video.media import MediaProbe, SamplingBounds, VideoAllowance
from tru_vlm.video.service import VideoService

_ANSWER_SHARE = 4
"""With ``fit``, an answer of no stated length has room for the default length, but for no more than this part of the
context."""


@dataclass(frozen=True, slots=True)
class MediaPlan:
    """How one video or image would be sampled.

    Attributes:
        probe: the file, as far as is known.
        sampling: the frames.
        allowance: what the frames were made to fit into; None if they were not.
    """

    probe: MediaProbe
    sampling: SamplingPlan
    allowance: VideoAllowance | None = None


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """How a request would be run.

    Attributes:
        media: in order.
        layouts: their sizes in the prompt.
        prompt: its tokens.
        tokens: what all of it takes.
    """

    media: tuple[MediaPlan, ...]
    layouts: list[MediaLayout]
    prompt: PromptTokenCount
    tokens: TokenCounts


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

    async def plan(self, probes: Sequence[MediaProbe], request: InferenceRequest) -> RequestPlan:
        """What would be sampled of the request's media and what it takes, which may be more than there is.

        Raises:
            InvalidRequestError: the request's options contradict each other, the file or the ceilings.
        """
        # A long prompt takes tens of milliseconds: not on the event loop.
        return await asyncio.to_thread(self._fit_or_plan if request.fits else self._plan, probes, request)

    async def plan_again(self, plan: RequestPlan, found: Sequence[VideoInfo], request: InferenceRequest) -> RequestPlan:
        """A plan that fits, for files whose headers told of less than was found in them."""
        probes = [_corrected(media.probe, info) for media, info in zip(plan.media, found, strict=True)]
        return await asyncio.to_thread(self._fit, probes, request, bounds_all=True)

    async def count(self, refs: Sequence[FramesRef], request: InferenceRequest, plan: RequestPlan) -> TokenCounts:
        """What a request takes with the frames that were decoded for it, by a plan which most files keep to."""
        layouts = [MediaLayout(r.kind, r.num_frames, r.height, r.width, r.timestamps_seconds) for r in refs]
        if layouts == plan.layouts:
            return self._tokens(plan.prompt, request)
        return self._tokens(await asyncio.to_thread(self._count, request, layouts), request)

    async def answer(
        self, probe: MediaProbe, request: InferenceRequest, *, size_bytes: int, model: str, variant: str
    ) -> PlanAnswer:
        """The plan of a request with one video or image, as clients read it.

        Args:
            probe: what is in the file.
            request: what is asked.
            size_bytes: of the file.
            model: the name that was asked for.
            variant: the name of the model that this plans for.

        Raises:
            InvalidRequestError: as :meth:`plan`.
        """
        plan = await self.plan([probe], request)
        (planned,) = plan.media
        media = _media_info(probe, size_bytes)
        if plan.tokens.fits:
            return PlanAnswer(model, variant, media, planned.sampling, plan.tokens, fits=True)
        refusal = self.refusal(plan.tokens, request).message
        fitted = None
        if not request.fits:
            (item,) = request.media
            fitting = replace(request, media=(replace(item, params=replace(item.params, fit=True)),))
            other = await self.plan([probe], fitting)
            fitted = FittedPlan(other.media[0].sampling, other.tokens) if other.tokens.fits else None
        return PlanAnswer(
            model, variant, media, planned.sampling, plan.tokens, fits=False, refusal=refusal, fitted=fitted
        )

    def refusal(self, tokens: TokenCounts, request: InferenceRequest) -> ContextLengthError:
        """The error for a request that does not fit: the numbers, and what can be done."""
        holder = "model's context" if tokens.context == self._profile.context_tokens else "KV cache"
        text = (
            f"{tokens.text} tokens of prompt, {tokens.video} of video and {tokens.answer} of answer make "
            f"{tokens.total}; the {holder} holds {tokens.context}. "
        )
        # What could be made smaller decides which field is to blame.
        names = request.names
        if all(item.params.fit for item in request.media):
            text += "These are the fewest and smallest frames: ask" if request.media else "Ask"
            text += " less, or lower max_tokens."
            param = names.prompt if tokens.text >= tokens.answer else names.max_tokens
        else:
            text += "Ask less, sample fewer frames or pixels (with fit, the server does), or lower max_tokens."
            blamed = next(item for item in request.media if not item.params.fit)
            param = names.prompt if tokens.text >= tokens.video else blamed.name_of("max_frames")
        return ContextLengthError(text, param=param)

    # Below: in threads.

    def _fit_or_plan(self, probes: Sequence[MediaProbe], request: InferenceRequest) -> RequestPlan:
        plan = self._plan(probes, request)
        if plan.tokens.text + plan.tokens.video + self._fair_answer(request) <= plan.tokens.context:
            return plan
        return self._fit(probes, request)

    def _fit(self, probes: Sequence[MediaProbe], request: InferenceRequest, *, bounds_all: bool = False) -> RequestPlan:
        """A plan whose media with ``fit`` are made to fit; ``bounds_all``: also those that need no more than their
        share are bound to it, whatever their files hold.
        """
        text, timestamps = self._text_tokens(probes, request)
        whole = self._plan(probes, request)
        needs = [
            media.sampling.video_tokens + -(-media.sampling.num_frames // self._profile.temporal_patch_size) * timestamp
            for media, timestamp in zip(whole.media, timestamps, strict=True)
        ]
        fitted = [index for index, item in enumerate(request.media) if item.params.fit]
        left = self.context_tokens - text - self._fair_answer(request) - sum(needs)
        shares = share_tokens([needs[i] for i in fitted], max(0, left + sum(needs[i] for i in fitted)))
        allowances: list[VideoAllowance | None] = [None] * len(probes)
        for index, share in zip(fitted, shares, strict=True):
            if bounds_all or share < needs[index]:
                allowances[index] = VideoAllowance(share, timestamps[index])
        return self._plan(probes, request, allowances)

    def _fair_answer(self, request: InferenceRequest) -> int:
        most = request.generation.max_tokens
        return min(most, self.context_tokens // _ANSWER_SHARE) if request.max_tokens_is_default else most

    def _plan(
        self,
        probes: Sequence[MediaProbe],
        request: InferenceRequest,
        allowances: Sequence[VideoAllowance | None] | None = None,
    ) -> RequestPlan:
        given = allowances or [None] * len(probes)
        media = tuple(map(self._plan_one, probes, request.media, given))
        layouts = [
            MediaLayout(s.kind, s.num_frames, s.height, s.width, s.frame_timestamps if s.kind == "video" else ())
            for s in (planned.sampling for planned in media)
        ]
        prompt = self._count(request, layouts)
        return RequestPlan(media, layouts, prompt, self._tokens(prompt, request))

    def _plan_one(self, probe: MediaProbe, item: MediaRequest, allowance: VideoAllowance | None) -> MediaPlan:
        with item.named():
            sampling = self._videos.plan(probe, item.params, self.bounds, allowance=allowance, param=item.param)
        return MediaPlan(probe, sampling, allowance)

    def _count(self, request: InferenceRequest, layouts: Sequence[MediaLayout]) -> PromptTokenCount:
        return count_prompt_tokens(self._profile, request.messages, layouts)

    def _tokens(self, count: PromptTokenCount, request: InferenceRequest) -> TokenCounts:
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

    def _text_tokens(self, probes: Sequence[MediaProbe], request: InferenceRequest) -> tuple[int, list[int]]:
        """Tokens of the text without timestamps, and the most that one timestamp of each medium takes.

        The last time has the most tokens: Qwen's tokenizers make one of each digit.
        """
        side, pair = self._profile.pixel_factor, self._profile.temporal_patch_size

        def text(longer: int | None = None) -> int:
            layouts = []
            for index, probe in enumerate(probes):
                num_frames = (2 * pair if index == longer else pair) if probe.kind == "video" else 1
                times = (probe.duration_seconds or 0.0,) * num_frames if probe.kind == "video" else ()
                layouts.append(MediaLayout(probe.kind, num_frames, side, side, times))
            count = self._count(request, layouts)
            return count.prompt_tokens - count.visual_tokens

        shortest = text()
        timestamps = [text(i) - shortest if probe.kind == "video" else 0 for i, probe in enumerate(probes)]
        return shortest - sum(timestamps), timestamps


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
