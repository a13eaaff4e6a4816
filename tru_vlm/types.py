"""The words that all packages share: the validated request, the answer, and the events between them.

Everything here is frozen and plain: no HTTP, no tensors, no configuration.  A request is checked once, at the door
(``api/schemas.py``), and trusted afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tru_vlm.errors import ErrorInfo

FinishReason = Literal["stop", "length", "abort", "error"]
MediaKind = Literal["video", "image"]
Role = Literal["system", "user", "assistant"]
Stage = Literal["queued", "fetching", "decoding", "waiting", "prefilling", "generating"]


@dataclass(frozen=True, slots=True)
class KeptVideo:
    """A video or image that the server keeps, as a request names it; whether it exists is not known yet."""

    id: str


@dataclass(frozen=True, slots=True)
class VideoParams:
    """How frames are sampled from a video; None means the server's default.

    Attributes:
        fps: frames per second of video time to sample; excludes ``nframes``.
        nframes: exact number of frames to sample; excludes ``fps``.
        min_frames, max_frames: bounds on the number of frames when ``fps`` decides.
        min_pixels, max_pixels: bounds on height x width of one resized frame.
        total_pixels: budget for the whole video, in pixels of temporally merged frames.
        video_start, video_end: the span to look at, seconds from the start of the file.
        fit: take less, and say so, where more was asked for than the ceilings, the file or the context allow.
    """

    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    fit: bool = False


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """How the answer is generated.  Values are final: defaults have been filled in at the door.

    Attributes:
        max_tokens: most tokens to generate.
        temperature: 0 is greedy.
        top_p: nucleus mass in (0, 1].
        top_k: keep the k likeliest tokens; 0 keeps all.
        seed: makes sampling reproducible; None draws one.
        stop: strings that end the answer; not part of it.
        min_p: keep tokens that are at least this part as likely as the likeliest; 0 keeps all.
        repetition_penalty: > 1 discourages tokens of prompt and answer (Keskar et al., 2019, CTRL, section 4.1).
        presence_penalty: taken from the logit of each token that the answer has; OpenAI's definition.
        frequency_penalty: taken from it once for each time that the answer has it; OpenAI's definition.
        logit_bias: (token id, what is added to its logit), each id once.
        ignore_eos: go on past the end-of-turn token (for benchmarks: a fixed output length).
        json_schema: a JSON schema, as JSON text, that the answer satisfies unless ``max_tokens`` or a stop string cuts
            it off; None leaves the answer free.  Excludes ``ignore_eos``.
    """

    max_tokens: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    json_schema: str | None = None


@dataclass(frozen=True, slots=True)
class TextPart:
    """Words, from the user or from an earlier answer."""

    text: str


@dataclass(frozen=True, slots=True)
class MediaPart:
    """The place of a video or image in a message; ``index`` counts the request's media from 0."""

    index: int


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: tuple[TextPart | MediaPart, ...]


@dataclass(frozen=True, slots=True)
class FramesRef:
    """Sampled frames on disk, as they cross from the HTTP process to a worker: a path and numbers, never pixels.

    Attributes:
        path: a ``.npy`` file of uint8, shape (T, 3, H, W), RGB; H and W already fit the model's patches.
        kind: "video" or "image" (an image has T = 1).
        content_key: hex digest over file content, effective sampling options and whose they are; equal keys mean equal
            frames.
        num_frames, height, width: T, H and W of the array.
        timestamps_seconds: presentation time of each frame, seconds from the start of the file; empty for images.
        frames_indices: absolute index of each frame in the source; empty for images.
        source_fps: average frame rate of the source; None for images.
    """

    path: str
    kind: MediaKind
    content_key: str
    num_frames: int
    height: int
    width: int
    timestamps_seconds: tuple[float, ...] = ()
    frames_indices: tuple[int, ...] = ()
    source_fps: float | None = None


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What was really sampled; part of every answer.

    Attributes:
        kind: "video" or "image".
        duration_seconds: length of the whole file; None for images.
        source_fps: average frame rate of the file; None for images.
        sample_fps: sampled frames per second of the span; None for images.
        num_frames: frames that the model saw.
        frame_timestamps: time of each of them, seconds from the start of the file.
        height, width: size of a frame as the model saw it, pixels.
        source_height, source_width: size of a frame in the file, after rotation, pixels.
        video_tokens: visual tokens the frames became.
        video_start, video_end: the span that was looked at, seconds.
        decoder: which reader decoded it.
        notes: what was reduced or clamped, and why, in sentences.
        frames_url: where the frames can be had as JPEG; ``{index}`` stands for the frame's number.
    """

    kind: MediaKind
    num_frames: int
    height: int
    width: int
    source_height: int
    source_width: int
    video_tokens: int
    decoder: str
    duration_seconds: float | None = None
    source_fps: float | None = None
    sample_fps: float | None = None
    frame_timestamps: tuple[float, ...] = ()
    video_start: float | None = None
    video_end: float | None = None
    notes: tuple[str, ...] = ()
    frames_url: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts.  ``prompt_tokens`` includes ``video_tokens``, and ``cached_tokens``: those not computed again."""

    prompt_tokens: int
    video_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, in seconds.  ``time_to_first_token`` and ``total`` count from receipt of the request."""

    queue: float = 0.0
    fetch: float = 0.0
    video_decode: float = 0.0
    preprocess: float = 0.0
    prefill: float = 0.0
    time_to_first_token: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A time in the video that the answer's text names.

    Attributes:
        start_seconds: from the start of the file.
        end_seconds: the same, of a span; None for a single time.
        text: the time or span, as the answer has it.
        sentence: what the answer says of it: the sentence around it.
    """

    start_seconds: float
    end_seconds: float | None
    text: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer to one request.

    ``model`` is the model or alias that was asked for, ``variant`` the model that answered; None where the request was
    aborted before one was chosen.  ``video`` is the request's first video or image (the events tell of each); None
    where it has none, or was aborted before the frames were there.  ``moments`` are the times in it that the text
    names, in the text's order.
    """

    id: str
    model: str
    text: str
    finish_reason: FinishReason
    usage: Usage
    video: VideoInfo | None
    timings: Timings
    moments: tuple[Moment, ...] = ()
    variant: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from, as logs and traces call it in every process.

    Attributes:
        request_id: the client's name for its exchange, or ours; not unique where the client chose it.
        trace: the span that it belongs to, as W3C's ``traceparent`` and ``tracestate``; empty where it is not traced.
    """

    request_id: str
    trace: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerRequest:
    """What is submitted to a worker: ids, paths and numbers.

    Attributes:
        id: the request's id, unique on this server.
        messages: the conversation; media parts point into ``media``.
        media: sampled frames, in the order of their parts.
        generation: how to generate.
        cache_salt: what the model computed is reused only under the same one; a tenant's.
        origin: for logs and traces.
    """

    id: str
    messages: tuple[Message, ...]
    media: tuple[FramesRef, ...]
    generation: GenerationParams = field(default_factory=lambda: GenerationParams(max_tokens=256, temperature=0.0))
    cache_salt: str = ""
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class StatusEvent:
    """Where the request is.  ``queue_position`` counts requests ahead of it while it waits."""

    id: str
    stage: Stage
    queue_position: int | None = None


@dataclass(frozen=True, slots=True)
class VideoEvent:
    """The sampling that was used; one for each video or image of the request, in order."""

    id: str
    video: VideoInfo


@dataclass(frozen=True, slots=True)
class DeltaEvent:
    """New text."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class DoneEvent:
    """The last event of a request that was answered (or aborted: see ``finish_reason``)."""

    answer: Answer


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """The last event of a request that failed."""

    id: str
    error: ErrorInfo


RequestEvent = StatusEvent | VideoEvent | DeltaEvent | DoneEvent | ErrorEvent
TerminalEvent = DoneEvent | ErrorEvent
