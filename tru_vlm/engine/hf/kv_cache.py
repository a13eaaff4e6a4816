"""The KV cache: one allocation at start, cut into blocks; who holds which block.  Knows no requests and no model code.

:class:`BlockManager` never sees a tensor; :class:`KvCache` holds the tensors and knows no owners.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

CPU_SHARE_OF_MEMORY = 0.25
GPU_SHARE_OF_MEMORY = 0.85  # the rest is for activations of the largest prefill chunk and for vision features


@dataclass(frozen=True, slots=True)
class BlockTable:
    """The blocks of one sequence, as runs of neighbouring blocks.

    Attributes:
        runs: (first block, number of blocks) of each run.
        slots: int64, (num_blocks * block_tokens,): where in the cache each of the sequence's tokens is kept.
    """

    runs: tuple[tuple[int, int], ...]
    slots: NDArray[np.int64] = field(repr=False)

    @property
    def num_blocks(self) -> int:
        """Blocks in all runs."""
        return sum(length for _, length in self.runs)

    @property
    def is_contiguous(self) -> bool:
        """Whether the tokens lie side by side in the cache, so that a view reads them without a copy."""
        return len(self.runs) == 1


class BlockManager:
    """Hands out blocks.  Prefers one run of neighbours, lowest first, so that the untouched end costs no memory."""

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._free: list[tuple[int, int]] = [(0, num_blocks)] if num_blocks else []

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds."""
        return sum(length for _, length in self._free)

    @property
    def capacity_tokens(self) -> int:
        """Tokens that fit in all blocks."""
        return self.num_blocks * self.block_tokens

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-num_tokens // self.block_tokens)

    def allocate(self, num_tokens: int) -> BlockTable | None:
        """Blocks for so many tokens, or None when they are not free now."""
        needed = self.blocks_for(num_tokens)
        if needed > self.num_free_blocks:
            return None
        runs = tuple(self._take(needed))
        return BlockTable(runs, self._slots(runs))

    def free(self, table: BlockTable) -> None:
        """Take blocks back; each table once."""
        for run in table.runs:
            bisect.insort(self._free, run)
        self._merge_neighbours()

    def _take(self, needed: int) -> list[tuple[int, int]]:
        fitting = next((i for i, (_, length) in enumerate(self._free) if length >= needed), None)
        if fitting is not None:
            return [self._cut(fitting, needed)]
        taken = []
        while needed:
            length = min(needed, self._free[0][1])
            taken.append(self._cut(0, length))
            needed -= length
        return taken

    def _cut(self, index: int, length: int) -> tuple[int, int]:
        start, available = self._free[index]
        self._free[index : index + 1] = [(start + length, available - length)] if available > length else []
        return start, length

    def _merge_neighbours(self) -> None:
        merged: list[tuple[int, int]] = []
        for start, length in self._free:
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self._free = merged

    def _slots(self, runs: tuple[tuple[int, int], ...]) -> NDArray[np.int64]:
        size = self.block_tokens
        return np.concatenate([np.arange(start * size, (start + length) * size) for start, length in runs])


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one token needs in the cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes per token: keys and values of all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize


class KvCache:
    """Keys and values of every layer, each (num_slots, num_kv_heads, head_dim)."""

    def __init__(self, shape: KvShape, num_slots: int, device: str) -> None:
        # On a host, memory that is not written to is not taken (zeroing would write to all of it), and attention
        # reads no slot before its token is there.  On a GPU zeroing is free, and makes stray reads harmless.
        allocate = torch.empty if torch.device(device).type == "cpu" else torch.zeros
        size = (num_slots, shape.num_kv_heads, shape.head_dim)
        self.keys = [allocate(size, dtype=shape.dtype, device=device) for _ in range(shape.num_layers)]
        self.values = [allocate(size, dtype=shape.dtype, device=device) for _ in range(shape.num_layers)]


def size_in_tokens(
    *,
    requested_tokens: int,
    most_useful_tokens: int,
    token_bytes: int,
    free_memory_bytes: int,
    is_cuda: bool,
    block_tokens: int,
) -> int:
    """How many tokens the cache holds: as requested, else what a share of free memory gives, never beyond use.

    Args:
        requested_tokens: the setting; 0 sizes by memory.
        most_useful_tokens: context x batch size: more could never be used.
        token_bytes: bytes per token.
        free_memory_bytes: memory that could be taken now.
        is_cuda: whether that is a GPU's own memory.
        block_tokens: the result is a multiple of it.
    """
    if requested_tokens:
        tokens = requested_tokens
    else:
        share = GPU_SHARE_OF_MEMORY if is_cuda else CPU_SHARE_OF_MEMORY
        tokens = min(most_useful_tokens, int(free_memory_bytes * share) // token_bytes)
    return max(1, -(-tokens // block_tokens)) * block_tokens
