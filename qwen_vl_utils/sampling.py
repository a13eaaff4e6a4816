"""Which frames: options, counts, indices, times and the plan. Pure arithmetic; knows no file and no decoder."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch

from qwen_vl_utils.constants import FPS, FPS_MAX_FRAMES, FPS_MIN_FRAMES, FRAME_FACTOR, SPATIAL_MERGE_SIZE
from qwen_vl_utils.errors import ExclusiveOptionsError, FrameCountError, InvalidTimeRangeError, SamplingOptionError
from qwen_vl_utils.resize import ceil_by_factor, floor_by_factor, round_by_factor, target_size, video_pixel_budget

logger = logging.getLogger(__name__)

NoteCode = Literal[
    "single_frame_repeated",
    "frame_count_reduced",
    "frame_count_raised",
    "time_range_clamped",
    "time_range_widened",
    "sample_rate_above_source",
    "max_frames_reached",
    "resized_side_ignored",
    "max_pixels_reduced",
    "variable_frame_rate",
    "source_shorter_than_header",
    "frames_not_decodable",
    "recovered_with_pyav",
    "frame_size_changed",
]


@dataclass(frozen=True, slots=True)
class Note:
    """Something that was changed or reduced on the way; ``code`` for programs, ``message`` for people."""

    code: NoteCode
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """What to take of a video. None means the default.

    fps: frames per second of source time (default 2.0); nframes: an exact count, rounded to even (not with fps).
    min_frames, max_frames: bounds for the count that fps gives (4 and 768). min_pixels, max_pixels: per frame.
    total_pixels: over num_frames / 2 merged frames. video_start, video_end: seconds from the first frame, both ends
    included. resized_height, resized_width: both or neither, instead of the pixel budget. clamp_short: a count or a
    range that does not fit is moved to the nearest that does, with a note, instead of being refused; a single frame
    is repeated to two.

    Raises SamplingOptionError for a value that is legal for no video.
    """

    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: float | None = None
    max_pixels: float | None = None
    total_pixels: float | None = None
    video_start: float | None = None
    video_end: float | None = None
    resized_height: int | None = None
    resized_width: int | None = None
    clamp_short: bool = True

    def __post_init__(self) -> None:
        if self.fps is not None and self.nframes is not None:
            raise ExclusiveOptionsError("fps and nframes exclude each other: give one of them")
        positive = ("fps", "nframes", "max_frames", "max_pixels", "total_pixels")
        for name in (*positive, "resized_height", "resized_width"):
            self._check(name, above_zero=True)
        for name in ("min_frames", "min_pixels", "video_start", "video_end"):
            self._check(name, above_zero=False)

    def _check(self, name: str, *, above_zero: bool) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise SamplingOptionError(f"{name} is {value!r}; a finite number is accepted")
        if above_zero and value <= 0:
            raise SamplingOptionError(f"{name} is {value!r}; a number above zero is accepted")

    def as_element(self) -> dict[str, Any]:
        """The options that are set, under the names of a conversation's video element."""
        names = (n for n in self.__slots__ if n != "clamp_short")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}


class VideoCounts(Protocol):
    """What the plan needs of a video; ``VideoProbe`` and ``FrameTable`` have it."""

    @property
    def num_frames(self) -> int | None:
        """Frames in the file; None when unknown."""
        ...

    @property
    def average_fps(self) -> float | None:
        """Frames over duration, in 1/s; None when unknown."""
        ...

    @property
    def height(self) -> int:
        """Pixels, as shown."""
        ...

    @property
    def width(self) -> int:
        """Pixels, as shown."""
        ...


@dataclass(frozen=True, slots=True)
class SourceCounts:
    """Plain numbers for ``plan_video``: height and width as shown (after rotation), average_fps in 1/s."""

    num_frames: int
    average_fps: float
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class FrameSpan:
    """A range of source frames, both ends included."""

    start: int
    end: int

    @property
    def num_frames(self) -> int:
        """Frames in the range."""
        return self.end - self.start + 1


@dataclass(frozen=True, slots=True)
class VideoPlan:
    """What would be sampled.

    frames_indices: absolute in the source, one per output frame. pts_seconds: times from the first frame, here
    index / source_fps (an estimate for a variable rate; ``read_video`` reports the real ones). num_source_frames: in
    the chosen span; total_num_frames: in the file. sample_fps: num_frames / num_source_frames * source_fps.
    grid_thw: (temporal, vertical, horizontal) patches; visual_tokens: t * h * w / 4.
    """

    num_frames: int
    frames_indices: tuple[int, ...]
    pts_seconds: tuple[float, ...]
    source_fps: float
    sample_fps: float
    num_source_frames: int
    total_num_frames: int
    source_height: int
    source_width: int
    resized_height: int
    resized_width: int
    grid_thw: tuple[int, int, int]
    visual_tokens: int
    notes: tuple[Note, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the uint8 frames, (num_frames, 3, resized_height, resized_width)."""
        return self.num_frames * 3 * self.resized_height * self.resized_width


# ---- the public arithmetic of the interface -------------------------------------------------------------------------


def smart_nframes(ele: Mapping[str, Any], total_frames: int, video_fps: float) -> int:
    """Number of frames to sample from ``total_frames`` frames at ``video_fps``; even, within 2..total_frames.

    ``ele["nframes"]`` is rounded to even (ties to the even half) and not clamped. Otherwise ``ele["fps"]`` (default
    2.0) over the duration, then raised to ``min_frames``, lowered to ``max_frames``, lowered to the total, and cut
    to even, in that order: the maximum wins over the minimum. Rule: section 3.

    Raises: SamplingOptionError (also AssertionError) when both are given, FrameCountError when the result is not
    within 2..total_frames.
    """
    if "fps" in ele and "nframes" in ele:
        raise ExclusiveOptionsError("only one of fps and nframes is accepted")
    if "nframes" in ele:
        count = round_by_factor(ele["nframes"], FRAME_FACTOR)
    else:
        count = _count_for_rate(ele, total_frames, video_fps)
    if not FRAME_FACTOR <= count <= total_frames:
        raise FrameCountError(f"{count} frames asked for; {FRAME_FACTOR} to {total_frames} are accepted")
    return count


def _count_for_rate(ele: Mapping[str, Any], total_frames: int, video_fps: float) -> int:
    fps = ele.get("fps", FPS)
    least = ceil_by_factor(ele.get("min_frames", FPS_MIN_FRAMES), FRAME_FACTOR)
    most = floor_by_factor(ele.get("max_frames", min(FPS_MAX_FRAMES, total_frames)), FRAME_FACTOR)
    wanted = total_frames / video_fps * fps
    if wanted > total_frames:
        logger.warning("fps %s is above the source's %s: all %s frames are used", fps, video_fps, total_frames)
    return floor_by_factor(min(max(wanted, least), most, total_frames), FRAME_FACTOR)


def calculate_video_frame_range(ele: Mapping[str, Any], total_frames: int, video_fps: float) -> tuple[int, int, int]:
    """Frames between ``video_start`` and ``video_end`` (seconds): (first, last included, count).

    Bounds are clamped to the video; the first frame is the one at or after the start, the last the one at or before
    the end. Without bounds: the whole video. Rule: section 4, including that products are not rounded first.

    Raises ValueError (InvalidTimeRangeError) when fewer than two frames remain or total/fps is not positive.
    """
    if video_fps <= 0:
        raise InvalidTimeRangeError(f"video_fps is {video_fps}; a number above zero is accepted")
    if total_frames <= 0:
        raise InvalidTimeRangeError(f"total_frames is {total_frames}; a number above zero is accepted")
    start, end = ele.get("video_start"), ele.get("video_end")
    if start is None and end is None:
        return 0, total_frames - 1, total_frames
    first, last = _range_by_rate(start, end, total_frames, video_fps)
    if first >= last:
        raise InvalidTimeRangeError(
            f"video_start {start} to video_end {end} leaves frames {first} to {last} "
            f"of {total_frames} at {video_fps:g} fps ({total_frames / video_fps:.3f} s)"
        )
    return first, last, last - first + 1


def _range_by_rate(start: float | None, end: float | None, total_frames: int, video_fps: float) -> tuple[int, int]:
    duration = total_frames / video_fps
    first, last = 0, total_frames - 1
    if start is not None:
        first = math.ceil(max(0.0, min(start, duration)) * video_fps)
    if end is not None:
        last = min(math.floor(max(0.0, min(end, duration)) * video_fps), total_frames - 1)
    return first, last


def linspace_indices(first: int, last: int, count: int) -> list[int]:
    """``count`` indices from ``first`` to ``last``, both included, evenly spread.

    float32 linspace of torch and rounding half to even, as the interface has it: float64 (numpy) differs on ties.
    """
    indices: list[int] = torch.linspace(first, last, count, dtype=torch.float32).round().long().tolist()
    return indices


# ---- spans ----------------------------------------------------------------------------------------------------------


def choose_span(
    options: SamplingOptions, *, num_frames: int, average_fps: float, times: Sequence[float] | None
) -> tuple[FrameSpan, tuple[Note, ...]]:
    """The frames that ``video_start`` / ``video_end`` leave.

    ``times`` (seconds from the first frame, ascending) are given for a variable frame rate: there index / fps is not
    the time, and the bounds are looked up among the real times. Otherwise: ``calculate_video_frame_range``.
    """
    if options.video_start is None and options.video_end is None:
        return FrameSpan(0, num_frames - 1), ()
    try:
        if times is None:
            first, last, _ = calculate_video_frame_range(options.as_element(), num_frames, average_fps)
        else:
            first, last = _range_by_times(options, times)
    except InvalidTimeRangeError:
        if not options.clamp_short:
            raise
        return _nearest_span(options, num_frames=num_frames, average_fps=average_fps, times=times)
    return FrameSpan(first, last), _range_notes(options, num_frames / average_fps)


def _range_by_times(options: SamplingOptions, times: Sequence[float]) -> tuple[int, int]:
    start = options.video_start if options.video_start is not None else 0.0
    end = options.video_end if options.video_end is not None else math.inf
    inside = [i for i, t in enumerate(times) if start <= t <= end]
    if len(inside) < FRAME_FACTOR:
        raise InvalidTimeRangeError(
            f"video_start {start:g} to video_end {end:g} leaves {len(inside)} frames of {len(times)} "
            f"(0 to {times[-1]:.3f} s)"
        )
    return inside[0], inside[-1]


def _nearest_span(
    options: SamplingOptions, *, num_frames: int, average_fps: float, times: Sequence[float] | None
) -> tuple[FrameSpan, tuple[Note, ...]]:
    """One frame for a range that is shorter than a frame; refuses a range that lies outside or runs backwards."""
    duration = num_frames / average_fps if times is None else times[-1] + 1.0 / average_fps
    start = max(0.0, options.video_start or 0.0)
    end = min(duration, options.video_end if options.video_end is not None else duration)
    if end < start or start >= duration:
        raise InvalidTimeRangeError(
            f"video_start {options.video_start} to video_end {options.video_end} holds nothing of {duration:.3f} s"
        )
    if times is None:
        index = min(num_frames - 1, int(start * average_fps))
    else:
        index = max(i for i, t in enumerate(times) if t <= start)
    text = f"the range {start:g} to {end:g} s is shorter than two frames: the frame shown at its start is used"
    return FrameSpan(index, index), (Note("time_range_widened", text),)


def _range_notes(options: SamplingOptions, duration_seconds: float) -> tuple[Note, ...]:
    start, end = options.video_start, options.video_end
    if (start is None or start >= 0) and (end is None or end <= duration_seconds):
        return ()
    text = f"the range {start} to {end} s was cut to the video's {duration_seconds:.3f} s"
    return (Note("time_range_clamped", text),)


# ---- the plan -------------------------------------------------------------------------------------------------------


def count_frames(options: SamplingOptions, *, available: int, source_fps: float) -> tuple[int, tuple[Note, ...]]:
    """Frames to output from ``available`` ones, and what had to be changed. Even and at least 2.

    A single available frame counts as 2 (it will be repeated). With ``clamp_short`` the count is moved into
    2..available; without, FrameCountError as ``smart_nframes``.
    """
    element = options.as_element()
    if available == 1 and (options.clamp_short or options.nframes in (None, 1, 2)):
        return FRAME_FACTOR, (Note("single_frame_repeated", "one frame is available: it is used twice"),)
    if not options.clamp_short:
        return smart_nframes(element, available, source_fps), ()
    if options.nframes is not None:
        wanted = round_by_factor(options.nframes, FRAME_FACTOR)
    else:
        wanted = _count_for_rate(element, available, source_fps)
    count = max(FRAME_FACTOR, min(wanted, floor_by_factor(available, FRAME_FACTOR)))
    return count, _count_notes(options, count=count, wanted=wanted, available=available, source_fps=source_fps)


def _count_notes(
    options: SamplingOptions, *, count: int, wanted: int, available: int, source_fps: float
) -> tuple[Note, ...]:
    notes = []
    if count < wanted:
        notes.append(Note("frame_count_reduced", f"{wanted} frames asked for, {available} available: {count} used"))
    if count > wanted:
        notes.append(Note("frame_count_raised", f"{wanted} frames asked for: {count} used, the least there is"))
    if options.nframes is None:
        fps = options.fps if options.fps is not None else FPS
        most = options.max_frames if options.max_frames is not None else FPS_MAX_FRAMES
        if fps > source_fps:
            text = f"fps {fps:g} is above the source's {source_fps:g}: no frame is used twice"
            notes.append(Note("sample_rate_above_source", text))
        if most < available and floor_by_factor(available / source_fps * fps, FRAME_FACTOR) > most:
            text = f"fps {fps:g} would give {available / source_fps * fps:.0f} frames: max_frames is {most}"
            notes.append(Note("max_frames_reached", text))
    return tuple(notes)


def plan_video(
    source: VideoCounts,
    sampling: SamplingOptions | None = None,
    *,
    image_patch_size: int = 16,
    times: Sequence[float] | None = None,
) -> VideoPlan:
    """What ``read_video`` will do with a video of these counts, by arithmetic alone.

    ``source``: a ``VideoProbe`` (header counts: an estimate), ``FrameTable`` (exact) or ``SourceCounts``. ``times``:
    real times of all frames in seconds from the first, for a variable frame rate.

    Raises: SamplingError when counts are unknown or options do not fit, SizeError when no size fits.
    """
    options = sampling if sampling is not None else SamplingOptions()
    if not source.num_frames or not source.average_fps:
        raise FrameCountError("the header tells neither frames nor rate: only reading the file will tell")
    num_frames, average_fps = source.num_frames, source.average_fps
    span, span_notes = choose_span(options, num_frames=num_frames, average_fps=average_fps, times=times)
    count, count_notes = count_frames(options, available=span.num_frames, source_fps=average_fps)
    height, width = target_size(
        source.height, source.width, num_frames=count, image_patch_size=image_patch_size, **_size_options(options)
    )
    indices = linspace_indices(span.start, span.end, count)
    grid = (count // FRAME_FACTOR, height // image_patch_size, width // image_patch_size)
    return VideoPlan(
        num_frames=count,
        frames_indices=tuple(indices),
        pts_seconds=tuple(times[i] if times is not None else i / average_fps for i in indices),
        source_fps=average_fps,
        sample_fps=count / span.num_frames * average_fps,
        num_source_frames=span.num_frames,
        total_num_frames=num_frames,
        source_height=source.height,
        source_width=source.width,
        resized_height=height,
        resized_width=width,
        grid_thw=grid,
        visual_tokens=grid[0] * grid[1] * grid[2] // SPATIAL_MERGE_SIZE**2,
        notes=span_notes + count_notes + _size_notes(options, count, SPATIAL_MERGE_SIZE * image_patch_size),
    )


def with_notes(plan: VideoPlan, *notes: Note) -> VideoPlan:
    """``plan`` with ``notes`` before its own."""
    return replace(plan, notes=notes + plan.notes)


def _size_options(options: SamplingOptions) -> dict[str, Any]:
    names = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")
    return {name: getattr(options, name) for name in names}


def _size_notes(options: SamplingOptions, num_frames: int, factor: int) -> tuple[Note, ...]:
    if (options.resized_height is None) != (options.resized_width is None):
        return (Note("resized_side_ignored", "resized_height and resized_width count only together: ignored"),)
    if options.max_pixels is None or options.resized_height is not None:
        return ()
    _, limit = video_pixel_budget(
        num_frames, factor=factor, min_pixels=options.min_pixels, total_pixels=options.total_pixels
    )
    if options.max_pixels <= limit:
        return ()
    return (Note("max_pixels_reduced", f"max_pixels {options.max_pixels:g} is above {limit:g}, the limit per frame"),)
