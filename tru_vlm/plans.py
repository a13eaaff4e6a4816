"""A plan as clients read it: what would be sampled of a video, and what it takes.  Knows no file and no model."""

from __future__ import annotations

from dataclasses import dataclass

from tru_vlm.types import MediaKind


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """What would be sampled, from what the file says.

    Attributes:
        kind: "video" or "image".
        num_frames, height, width: shape of the frames.
        video_tokens: visual tokens that they become.
        frame_timestamps: estimated time of each, seconds; empty for images.
        source_fps, sample_fps: frames per second of the file and of the sample; None for images.
        video_start, video_end: the span that is looked at, seconds; None for images.
        notes: what was reduced or clamped, and why.
    """

    kind: MediaKind
    num_frames: int
    height: int
    width: int
    video_tokens: int
    frame_timestamps: tuple[float, ...] = ()
    source_fps: float | None = None
    sample_fps: float | None = None
    video_start: float | None = None
    video_end: float | None = None
    notes: tuple[str, ...] = ()


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
class FittedPlan:
    """What would be sampled with `fit`."""

    sampling: SamplingPlan
    tokens: TokenCounts


@dataclass(frozen=True, slots=True)
class PlanAnswer:
    """The answer to a request for a plan.

    Attributes:
        model: the model or alias that was asked for.
        variant: the model that would answer, for which this holds.
        media: the file.
        sampling: what would be sampled; times and counts are those of the file's header.
        tokens: what the request takes of the context.
        fits: whether the question could be asked so.
        refusal: if it could not, what would be answered.
        fitted: if it could not, what would be sampled with `fit`; null if not even that fits.
    """

    model: str
    variant: str
    media: MediaInfo
    sampling: SamplingPlan
    tokens: TokenCounts
    fits: bool
    refusal: str | None = None
    fitted: FittedPlan | None = None
