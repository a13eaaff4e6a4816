"""The module settles how a file will be sampled: a request's wishes, the defaults and the ceilings.  Pure."""

from __future__ import annotations

from typing import NoReturn

from tru_vlm.errors import InvalidRequestError
from tru_vlm.types import VideoParams
from tru_vlm.video.media import EffectiveSampling, MediaProbe, SamplingBounds

LEAST_FRAMES = 2
DEFAULT_MIN_FRAMES = 4


def settle_sampling(
    probe: MediaProbe, params: VideoParams, bounds: SamplingBounds
) -> tuple[EffectiveSampling, tuple[str, ...]]:
    """Final options and notes on what was cut.

    A bound that a request raises above the server's ceiling is lowered to it, with a note; what cannot be done
    exactly (``nframes`` over the ceiling, a span outside the video) is refused.

    Raises:
        InvalidRequestError: values that contradict each other, the ceilings or the file; ``param`` names the field.
    """
    if probe.kind == "image":
        return _settle_image(params, bounds)
    _check_span(probe, params)
    frames, frame_notes = _settle_frames(probe, params, bounds)
    pixels, pixel_notes = _settle_pixels(params, bounds.min_pixels, bounds.max_pixels)
    total, total_notes = _settle_total(params, bounds)
    fps = None if params.nframes is not None else params.fps or bounds.default_fps
    sampling = EffectiveSampling(
        kind="video",
        patch_size=bounds.patch_size,
        min_pixels=pixels[0],
        max_pixels=pixels[1],
        total_pixels=total,
        fps=fps,
        nframes=params.nframes,
        min_frames=frames[0],
        max_frames=frames[1],
        video_start=params.video_start or None,  # 0 is where it starts anyway
        video_end=params.video_end,
    )
    return sampling, frame_notes + pixel_notes + total_notes


def _settle_image(params: VideoParams, bounds: SamplingBounds) -> tuple[EffectiveSampling, tuple[str, ...]]:
    low = bounds.image_min_pixels if bounds.image_min_pixels is not None else bounds.min_pixels
    high = bounds.image_max_pixels if bounds.image_max_pixels is not None else bounds.max_pixels
    pixels, notes = _settle_pixels(params, low, high)
    sampling = EffectiveSampling(kind="image", patch_size=bounds.patch_size, min_pixels=pixels[0], max_pixels=pixels[1])
    return sampling, notes


def _check_span(probe: MediaProbe, params: VideoParams) -> None:
    start, end, duration = params.video_start, params.video_end, probe.duration_seconds
    if start is not None and end is not None and end <= start:
        _refuse(f"video_end is {end:g}; it must be greater than video_start, which is {start:g}.", "video_end")
    if start is not None and duration is not None and start >= duration:
        text = f"video_start is {start:g}; it must lie before the video's end at {duration:.3f} seconds."
        _refuse(text, "video_start")


def _settle_frames(
    probe: MediaProbe, params: VideoParams, bounds: SamplingBounds
) -> tuple[tuple[int | None, int | None], tuple[str, ...]]:
    """(min_frames, max_frames) and notes; both None when ``nframes`` decides."""
    ceiling = bounds.max_frames
    if params.nframes is not None:
        _check_nframes(probe, params.nframes, ceiling)
        return (None, None), ()
    wanted = params.max_frames
    if wanted is None:
        wanted = max(bounds.default_max_frames, params.min_frames or 0)
    most = min(wanted, ceiling)
    notes = (f"max_frames was lowered from {wanted} to {most}, the server's limit",) if most < wanted else ()
    if params.min_frames is not None and params.min_frames > most:
        _refuse(f"min_frames is {params.min_frames}; at most {most} (max_frames) is accepted.", "min_frames")
    least = params.min_frames if params.min_frames is not None else min(DEFAULT_MIN_FRAMES, most)
    return (least, most), notes if params.max_frames is not None else ()


def _check_nframes(probe: MediaProbe, nframes: int, ceiling: int) -> None:
    if nframes > ceiling:
        _refuse(f"nframes is {nframes}; at most {ceiling} frames are accepted.", "nframes")
    if probe.num_frames is not None and nframes > max(probe.num_frames, LEAST_FRAMES):
        _refuse(f"nframes is {nframes}; the video has {probe.num_frames} frames.", "nframes")


def _settle_pixels(params: VideoParams, low: int, high: int) -> tuple[tuple[int, int], tuple[str, ...]]:
    """(min_pixels, max_pixels) for one frame and notes."""
    notes: tuple[str, ...] = ()
    most = high
    if params.max_pixels is not None:
        most = min(params.max_pixels, high)
        if most < params.max_pixels:
            notes = (f"max_pixels was lowered from {params.max_pixels} to {high}, the server's limit",)
    if params.min_pixels is not None and params.min_pixels > most:
        _refuse(f"min_pixels is {params.min_pixels}; at most {most} (max_pixels) is accepted.", "min_pixels")
    least = params.min_pixels if params.min_pixels is not None else min(low, most)
    return (least, most), notes


def _settle_total(params: VideoParams, bounds: SamplingBounds) -> tuple[int | None, tuple[str, ...]]:
    wanted, ceiling = params.total_pixels, bounds.total_pixels
    if wanted is None or ceiling is None or wanted <= ceiling:
        return (wanted if wanted is not None else ceiling), ()
    return ceiling, (f"total_pixels was lowered from {wanted} to {ceiling}, the server's limit",)


def _refuse(text: str, name: str) -> NoReturn:
    raise InvalidRequestError(text, param=f"video_params.{name}")
