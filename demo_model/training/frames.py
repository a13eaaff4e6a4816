"""Frame arithmetic that training shares with the product: frame size, resize, patches. Never sees a model."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

PATCH = 16
MERGE = 2
FACTOR = PATCH * MERGE
MIN_PIXELS = 4096
MAX_PIXELS = 16384


def target_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) at which the model sees a frame: multiples of 32 within MIN_PIXELS..MAX_PIXELS (Qwen's
    smart_resize).
    """
    new_h, new_w = (max(FACTOR, round(side / FACTOR) * FACTOR) for side in (height, width))
    if new_h * new_w > MAX_PIXELS:
        beta = math.sqrt(height * width / MAX_PIXELS)
        new_h, new_w = (max(FACTOR, math.floor(side / beta / FACTOR) * FACTOR) for side in (height, width))
    elif new_h * new_w < MIN_PIXELS:
        beta = math.sqrt(MIN_PIXELS / (height * width))
        new_h, new_w = (math.ceil(side * beta / FACTOR) * FACTOR for side in (height, width))
    return new_h, new_w


def resized(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Antialiased bicubic resize of (n, h, w, 3) uint8 frames."""
    if frames.shape[1:3] == (height, width):
        return frames
    tensor = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    scaled = torch.nn.functional.interpolate(
        tensor, size=(height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return scaled.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def patches(pairs: torch.Tensor) -> torch.Tensor:
    """Pairs of frames (b, 2, h, w, 3) uint8 to the vision tower's input (b * h/16 * w/16, 1536) float32, merge
    blocks adjacent.
    """
    b, t, h, w, c = pairs.shape
    values = (pairs.float() - 127.5) / 127.5
    values = values.view(b, t, h // FACTOR, MERGE, PATCH, w // FACTOR, MERGE, PATCH, c)
    values = values.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)  # b, h/32, w/32, 2, 2, channel, temporal, 16, 16
    return values.reshape(-1, c * t * PATCH * PATCH)
