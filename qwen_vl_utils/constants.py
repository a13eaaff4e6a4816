"""The numbers of the public interface; owns the reading of the three environment variables that the interface names.

A count of *tokens* here is a count of merged patches: one token covers ``factor x factor`` pixels, where
``factor = SPATIAL_MERGE_SIZE * image_patch_size``. Pixel bounds are therefore ``tokens * factor**2``.
"""

from __future__ import annotations

import os
from typing import Final

MAX_RATIO: Final = 200
"""Longer side over shorter side; strictly above it an image is refused."""

SPATIAL_MERGE_SIZE: Final = 2
"""Patches merged along each side into one token."""

IMAGE_MIN_TOKEN_NUM: Final = 4
IMAGE_MAX_TOKEN_NUM: Final = 16384
VIDEO_MIN_TOKEN_NUM: Final = 128
VIDEO_MAX_TOKEN_NUM: Final = 768

FPS: Final = 2.0
"""Frames sampled per second when a video names no rate."""

FRAME_FACTOR: Final = 2
"""Frames merged along time; every frame count is a multiple of it."""

FPS_MIN_FRAMES: Final = 4
FPS_MAX_FRAMES: Final = 768

DEFAULT_IMAGE_PATCH_SIZE: Final = 14
"""Qwen2-VL and Qwen2.5-VL; Qwen3-VL has 16."""

DEFAULT_CODEC_THREADS: Final = 8
MAX_FRAME_LIST_THREADS: Final = 8

TOTAL_PIXELS_SHARE: Final = 0.9
"""Share of the model's context that a video may fill when it names no ``total_pixels``."""

MODEL_SEQ_LEN: Final = int(float(os.environ.get("MODEL_SEQ_LEN") or 128000))
"""Context length in tokens. Read once, at import, as the interface has it; "1.5e3" is legal."""

FORCE_QWENVL_VIDEO_READER: Final[str | None] = os.environ.get("FORCE_QWENVL_VIDEO_READER") or None
"""Backend that ``fetch_video`` must use. Read once, at import, as the interface has it."""


def torchcodec_num_threads() -> int:
    """Decoder threads that ``fetch_video`` asks for: ``TORCHCODEC_NUM_THREADS``, read on each call, default 8."""
    return int(os.environ.get("TORCHCODEC_NUM_THREADS") or DEFAULT_CODEC_THREADS)
