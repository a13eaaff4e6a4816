"""Frames to the vision tower's patches.  Knows the order of values in a patch; knows no weights and no text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

PIXEL_MIDDLE = 127.5  # (x / 255 - 0.5) / 0.5, the released checkpoints' rescaling and normalising, in one step


def patchify(
    frames: NDArray[np.uint8],
    *,
    patch_size: int,
    spatial_merge_size: int,
    temporal_patch_size: int,
    start: int = 0,
    stop: int | None = None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Patches of the temporal patches ``start`` up to ``stop``, as in ``pixel_values`` and ``pixel_values_videos``.

    Only the frames of that range are read, so a memory-mapped array is never read whole.

    Args:
        frames: uint8, (T, 3, H, W); H and W are multiples of patch size x merge size.
        patch_size: side of a spatial patch in pixels.
        spatial_merge_size: spatial patches per visual token, along one side.
        temporal_patch_size: frames per temporal patch.
        start: first temporal patch.
        stop: end of the range of temporal patches; None is the end of the video.  Where T is no multiple of the
            temporal patch size, the last frame is repeated.
        dtype: of the result; None is float32.  uint8 leaves the bytes as they are.

    Returns:
        (n * h * w, 3 * temporal_patch_size * patch_size**2): values in [-1, 1], or bytes; rows ordered by time, then by
        blocks of spatial_merge_size**2 patches that become one visual token.
    """
    import torch

    height, width = frames.shape[2:]
    rows, columns = height // patch_size, width // patch_size
    pixels = torch.from_numpy(_whole_patches(frames, start, stop, temporal_patch_size))
    patches = pixels.view(
        -1,
        temporal_patch_size,
        3,
        rows // spatial_merge_size,
        spatial_merge_size,
        patch_size,
        columns // spatial_merge_size,
        spatial_merge_size,
        patch_size,
    )
    # Reordered as bytes, a quarter of the memory traffic of reordering floats.
    patches = patches.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, 3 * temporal_patch_size * patch_size**2)
    if dtype is torch.uint8:
        return patches
    values = patches.to(torch.float32).sub_(PIXEL_MIDDLE).div_(PIXEL_MIDDLE)
    return values if dtype is None else values.to(dtype)


def _whole_patches(
    frames: NDArray[np.uint8], start: int, stop: int | None, temporal_patch_size: int
) -> NDArray[np.uint8]:
    """A copy of the range's frames, the last one repeated up to a whole temporal patch."""
    last = None if stop is None else stop * temporal_patch_size
    chunk = np.array(frames[start * temporal_patch_size : last], dtype=np.uint8, order="C")
    missing = -len(chunk) % temporal_patch_size
    return np.concatenate([chunk, np.repeat(chunk[-1:], missing, axis=0)]) if missing else chunk
