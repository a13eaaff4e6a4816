"""Target sizes and the resize itself. Owns the size arithmetic; knows no file and no frame index."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch.nn import functional

from qwen_vl_utils.constants import (
    FRAME_FACTOR,
    IMAGE_MAX_TOKEN_NUM,
    IMAGE_MIN_TOKEN_NUM,
    MAX_RATIO,
    MODEL_SEQ_LEN,
    SPATIAL_MERGE_SIZE,
    TOTAL_PIXELS_SHARE,
    VIDEO_MAX_TOKEN_NUM,
    VIDEO_MIN_TOKEN_NUM,
)
from qwen_vl_utils.errors import AspectRatioError, EmptySizeError, PixelBudgetError

Arithmetic = Literal["uint8", "float32"]
"""In which numbers frames are interpolated."""


def round_by_factor(number: float, factor: int) -> int:
    """Multiple of ``factor`` nearest to ``number``; a tie goes to the even multiple (Python's ``round``)."""
    return round(number / factor) * factor


def ceil_by_factor(number: float, factor: int) -> int:
    """Smallest multiple of ``factor`` that is at least ``number``."""
    return math.ceil(number / factor) * factor


def floor_by_factor(number: float, factor: int) -> int:
    """Largest multiple of ``factor`` that is at most ``number``."""
    return math.floor(number / factor) * factor


def smart_resize(
    height: int,
    width: int,
    factor: int,
    min_pixels: float | None = None,
    max_pixels: float | None = None,
) -> tuple[int, int]:
    """Size nearest to (height, width) whose sides are multiples of ``factor`` and whose area keeps the bounds.

    Bounds default to the *image* bounds, 4 and 16384 tokens of ``factor**2`` pixels, and may be fractions. The aspect
    ratio is kept as well as the grid allows. An enlarged area may exceed ``max_pixels`` by the rounding up, and a very
    thin input that must shrink may come out with a side of 0: both as in the interface that this equals (section 2 of
    the rules); ``target_size`` is the one that never returns 0.

    Raises: PixelBudgetError (also AssertionError) for max < min; AspectRatioError above 200; EmptySizeError (also
    ZeroDivisionError) for a zero side. All are ValueErrors.
    """
    low = min_pixels if min_pixels is not None else IMAGE_MIN_TOKEN_NUM * factor**2
    high = max_pixels if max_pixels is not None else IMAGE_MAX_TOKEN_NUM * factor**2
    if high < low:
        raise PixelBudgetError(f"max_pixels {high:g} is below min_pixels {low:g}")
    if min(height, width) <= 0:
        raise EmptySizeError(f"height {height} and width {width} must be above zero")
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_RATIO:
        raise AspectRatioError(f"sides {height} x {width}: ratio {ratio:g} is above {MAX_RATIO}")
    new_height = max(factor, round_by_factor(height, factor))
    new_width = max(factor, round_by_factor(width, factor))
    if new_height * new_width > high:
        shrink = math.sqrt((height * width) / high)
        new_height = floor_by_factor(height / shrink, factor)
        new_width = floor_by_factor(width / shrink, factor)
    elif new_height * new_width < low:
        grow = math.sqrt(low / (height * width))
        new_height = ceil_by_factor(height * grow, factor)
        new_width = ceil_by_factor(width * grow, factor)
    return new_height, new_width


def video_pixel_budget(
    num_frames: int,
    *,
    factor: int,
    min_pixels: float | None = None,
    max_pixels: float | None = None,
    total_pixels: float | None = None,
) -> tuple[float, float]:
    """Bounds (min, max) in pixels for one frame of a video of ``num_frames`` frames.

    ``total_pixels`` is a budget of ``num_frames / 2`` merged frames, hence the factor 2; its default is 90 % of
    ``MODEL_SEQ_LEN`` tokens. The bound never falls under 1.05 times the minimum, except that an explicit
    ``max_pixels`` wins over it (and may then be refused by ``smart_resize``). Rule: section 5, "Budget per frame".
    """
    low = min_pixels if min_pixels is not None else VIDEO_MIN_TOKEN_NUM * factor**2
    total = total_pixels if total_pixels is not None else MODEL_SEQ_LEN * factor**2 * TOTAL_PIXELS_SHARE
    share = min(VIDEO_MAX_TOKEN_NUM * factor**2, total / num_frames * FRAME_FACTOR)
    high = max(share, int(low * 1.05))
    if max_pixels is not None:
        high = min(max_pixels, high)
    return low, high


def target_size(
    height: int,
    width: int,
    *,
    num_frames: int,
    image_patch_size: int,
    min_pixels: float | None = None,
    max_pixels: float | None = None,
    total_pixels: float | None = None,
    resized_height: int | None = None,
    resized_width: int | None = None,
) -> tuple[int, int]:
    """Size (height, width) of every frame of a sampled video; sides are multiples of ``2 * image_patch_size``.

    With both ``resized_height`` and ``resized_width`` the source's size and the video budget play no part (the image
    bounds apply); one of them alone is ignored. A side that the arithmetic sends to 0 becomes one factor.
    """
    factor = SPATIAL_MERGE_SIZE * image_patch_size
    if resized_height is not None and resized_width is not None:
        size = smart_resize(resized_height, resized_width, factor)
    else:
        low, high = video_pixel_budget(
            num_frames,
            factor=factor,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            total_pixels=total_pixels,
        )
        size = smart_resize(height, width, factor, low, high)
    return max(factor, size[0]), max(factor, size[1])


def resize_into(frame: torch.Tensor, out: torch.Tensor, arithmetic: Arithmetic) -> None:
    """Write ``frame`` (3, H, W) uint8, any memory layout, into ``out`` (3, h, w) uint8 by antialiased bicubic.

    "float32" rounds half to even and clamps once, at the end: what the package on PyPI does, to the bit. One channel at
    a time: the float copies of a 4K frame then take a third of the memory, at the same speed. "uint8" is torch's kernel
    with weights of 16 bits, several times cheaper, which Transformers' own video processor uses: it differs by 1
    here and there, and by more beside the hardest edges, whose overshoot it clamps between the two passes.
    """
    if frame.shape == out.shape:
        out.copy_(frame)
        return
    size = (int(out.shape[1]), int(out.shape[2]))
    if arithmetic == "uint8":
        out.copy_(functional.interpolate(frame[None], size, mode="bicubic", align_corners=False, antialias=True)[0])
        return
    for channel, target in zip(frame, out, strict=True):
        plane = channel.to(torch.float32, memory_format=torch.contiguous_format)[None, None]
        scaled = functional.interpolate(plane, size, mode="bicubic", align_corners=False, antialias=True)
        target.copy_(scaled[0, 0].round_().clamp_(0, 255))
