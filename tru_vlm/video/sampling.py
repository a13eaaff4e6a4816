"""The module settles how a file will be sampled: a request's wishes, the defaults and the ceilings.  Pure."""

from __future__ import annotations

from typing import Literal, NoReturn

from tru_vlm.errors import InvalidRequestError
from tru_vlm.types import VideoParams
from tru_vlm.video.media import EffectiveSampling, MediaProbe, SamplingBounds

LEAST_FRAMES = 2
DEFAULT_MIN_FRAMES = 4
_OFFER = "; with fit the most that is possible is taken"


def settle_sampling(
    probe: MediaProbe, params: VideoParams, bounds: SamplingBounds
) -> tuple[EffectiveSampling, tuple[str, ...]]:
    """Final options and notes on what was cut.

    A bound that a request raises above the server's ceiling is lowered to it, with a note.  What cannot be done
    exactly (``nframes`` over the ceiling, a span outside the video) is refused; with ``fit``, numbers that are too
    large are lowered too, with a note each.

    Raises:
        InvalidRequestError: values that contradict each other, the ceilings or the file; ``param`` names the field.
    """
    if probe.kind == "image":
        return _settle_image(params, bounds)
    _check_span(probe, params)
    nframes, nframes_notes = _settle_nframes(probe, params, bounds.max_frames)
    frames, frames_notes = _settle_frames(params, bounds)
    pixels, pixel_notes = _settle_pixels(params, *bounds.pixels_of("video"))
    total, total_notes = _settle_total(params, bounds)
    fps = None if params.nframes is not None else params.fps or bounds.default_fps
    sampling = EffectiveSampling(
        kind="video",
        patch_size=bounds.patch_size,
        min_pixels=pixels[0],
        max_pixels=pixels[1],
        total_pixels=total,
        fps=fps,
        nframes=nframes,
        min_frames=frames[0],
        max_frames=frames[1],
        video_start=params.video_start or None,  # 0 is where it starts anyway
        video_end=params.video_end,
        takes_fewer=params.fit and params.nframes is not None,
    )
    return sampling, nframes_notes + frames_notes + pixel_notes + total_notes


def _settle_image(params: VideoParams, bounds: SamplingBounds) -> tuple[EffectiveSampling, tuple[str, ...]]:
    pixels, notes = _settle_pixels(params, *bounds.pixels_of("image"))
    sampling = EffectiveSampling(kind="image", patch_size=bounds.patch_size, min_pixels=pixels[0], max_pixels=pixels[1])
    return sampling, notes


def _check_span(probe: MediaProbe, params: VideoParams) -> None:
    start, end, duration = params.video_start, params.video_end, probe.duration_seconds
    if start is not None and end is not None and end <= start:
        _refuse(f"video_end is {end:g}; it must be greater than video_start, which is {start:g}.", "video_end")
    if start is not None and duration is not None and start >= duration:
        text = f"video_start is {start:g}; it must lie before the video's end at {duration:.3f} seconds."
        _refuse(text, "video_start")


def _settle_nframes(probe: MediaProbe, params: VideoParams, ceiling: int) -> tuple[int | None, tuple[str, ...]]:
    """``nframes`` and notes.  That a file has fewer is the decoder's to note, which knows how many there really are."""
    nframes = params.nframes
    if nframes is None:
        return None, ()
    if params.fit and nframes > ceiling:
        most = ceiling - ceiling % LEAST_FRAMES  # an odd number would be rounded, maybe up
        return most, (f"nframes was lowered from {nframes} to {most}, the server's limit",)
    if nframes > ceiling:
        _refuse(f"nframes is {nframes}; at most {ceiling} frames are accepted{_OFFER}.", "nframes")
    if not params.fit and probe.num_frames is not None and nframes > max(probe.num_frames, LEAST_FRAMES):
        _refuse(f"nframes is {nframes}; the video has {probe.num_frames} frames{_OFFER}.", "nframes")
    return nframes, ()


def _settle_frames(
    params: VideoParams, bounds: SamplingBounds
) -> tuple[tuple[int | None, int | None], tuple[str, ...]]:
    """(min_frames, max_frames) and notes; both None when ``nframes`` decides."""
    if params.nframes is not None:
        return (None, None), ()
    wanted = params.max_frames
    if wanted is None:
        wanted = max(bounds.default_max_frames, params.min_frames or 0)
    most = min(wanted, bounds.max_frames)
    notes: tuple[str, ...] = ()
    if params.max_frames is not None and most < wanted:
        notes = (f"max_frames was lowered from {wanted} to {most}, the server's limit",)
    least, least_notes = _settle_least(params, "min_frames", default=DEFAULT_MIN_FRAMES, most=most)
    return (least, most), notes + least_notes


def _settle_pixels(params: VideoParams, low: int, high: int) -> tuple[tuple[int, int], tuple[str, ...]]:
    """(min_pixels, max_pixels) for one frame and notes."""
    notes: tuple[str, ...] = ()
    most = high
    if params.max_pixels is not None:
        most = min(params.max_pixels, high)
        if most < params.max_pixels:
            notes = (f"max_pixels was lowered from {params.max_pixels} to {high}, the server's limit",)
    least, least_notes = _settle_least(params, "min_pixels", default=low, most=most)
    return (least, most), notes + least_notes


def _settle_least(
    params: VideoParams, name: Literal["min_frames", "min_pixels"], *, default: int, most: int
) -> tuple[int, tuple[str, ...]]:
    """A lower bound that does not pass the upper one, and notes."""
    wanted: int | None = getattr(params, name)
    if wanted is None or wanted <= most:
        return (wanted if wanted is not None else min(default, most)), ()
    limit = f"{most} ({name.replace('min', 'max')})"
    if not params.fit:
        _refuse(f"{name} is {wanted}; at most {limit} is accepted{_OFFER}.", name)
    return most, (f"{name} was lowered from {wanted} to {limit}",)


def _settle_total(params: VideoParams, bounds: SamplingBounds) -> tuple[int | None, tuple[str, ...]]:
    wanted, ceiling = params.total_pixels, bounds.total_pixels
    if wanted is None or ceiling is None or wanted <= ceiling:
        return (wanted if wanted is not None else ceiling), ()
    return ceiling, (f"total_pixels was lowered from {wanted} to {ceiling}, the server's limit",)


def _refuse(text: str, name: str) -> NoReturn:
    raise InvalidRequestError(text, param=f"video_params.{name}")
