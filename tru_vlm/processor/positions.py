"""Multimodal rotary positions (mrope): three coordinates per token.  Plain arithmetic on indices; knows no model.

Text advances all three coordinates by one.  A temporal patch holds its start on the time axis, and counts rows and
columns of merged patches on the other two; what follows it starts behind the larger side.  Source: Qwen2-VL
(arXiv 2409.12191, section 2.1), and ``Qwen3VLModel.get_rope_index`` in Transformers for the split into frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tru_vlm.processor.prompt import MediaSpans


def mrope_positions(
    num_tokens: int, spans: Sequence[MediaSpans], *, spatial_merge_size: int
) -> tuple[NDArray[np.int64], int]:
    """Positions of a prompt's tokens, and what to add to a later token's index to get its position.

    Args:
        num_tokens: N.
        spans: where the visual tokens stand.
        spatial_merge_size: patches per visual token, along one side.

    Returns:
        positions, int64, (3, N): time, height, width; and ``rope_delta``: the token at index i >= N has position
        i + rope_delta on all three axes.
    """
    advance = np.ones(num_tokens, dtype=np.int64)
    for span in spans:
        rows, columns = _merged_grid(span, spatial_merge_size)
        last = span.starts + span.tokens_per_frame - 1
        advance[_token_indices(span)] = 0
        advance[last] = max(rows, columns)
    positions = np.broadcast_to(np.cumsum(advance) - advance, (3, num_tokens)).copy()
    for span in spans:
        rows, columns = _merged_grid(span, spatial_merge_size)
        indices = _token_indices(span)
        positions[0, indices] = positions[0, span.starts][:, None]
        positions[1, indices] = positions[0, indices] + np.repeat(np.arange(rows), columns)
        positions[2, indices] = positions[0, indices] + np.tile(np.arange(columns), rows)
    return positions, int(positions.max()) + 1 - num_tokens


def _merged_grid(span: MediaSpans, spatial_merge_size: int) -> tuple[int, int]:
    return span.grid_thw[1] // spatial_merge_size, span.grid_thw[2] // spatial_merge_size


def _token_indices(span: MediaSpans) -> NDArray[np.int64]:
    """Indices of the visual tokens; (grid_t, tokens_per_frame)."""
    indices: NDArray[np.int64] = span.starts[:, None] + np.arange(span.tokens_per_frame)
    return indices
