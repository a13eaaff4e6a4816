"""The KV cache: one allocation at start, cut into blocks; who holds which block.  Knows no requests and no model code.

:class:`BlockManager` never sees a tensor; :class:`KvCache` holds the tensors and knows no owners.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

CPU_SHARE_OF_MEMORY = 0.25
GPU_SHARE_OF_MEMORY = 0.85  # the rest is for activations of the largest prefill chunk and for vision features


@dataclass(frozen=True, slots=True)
class BlockTable:
    """The blocks of one sequence.

    Attributes:
        blocks: in the order of the sequence's tokens.
        num_cached_tokens: tokens at the beginning whose keys and values were there when the blocks were handed out.
        slots: int64, (num_blocks * block_tokens,): where in the cache each of the sequence's tokens is kept.
        num_neighbour_tokens: tokens at the beginning that lie side by side, so that a view reads them without a copy.
    """

    blocks: tuple[int, ...]
    num_cached_tokens: int
    slots: NDArray[np.int64] = field(repr=False)
    num_neighbour_tokens: int

    @property
    def num_blocks(self) -> int:
        """All of them."""
        return len(self.blocks)


class BlockManager:
    """Hands out blocks, and knows which of them hold what content.

    A block is free, held (by one sequence or several), or idle: held by nobody, but its content has a key and may be
    asked for again.  Idle blocks can be had like free ones: they are evicted when free ones do not suffice, the least
    recently used first.  A block with a key is full and never written to again, so its holders need not know of each
    other.

    Prefers neighbours, lowest first, so that the untouched end costs no memory.

    Attributes:
        num_evictions: blocks whose content was given up for space.
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.num_evictions = 0
        self._free: list[tuple[int, int]] = [(0, num_blocks)] if num_blocks else []  # runs: first block, length
        self._num_holders: dict[int, int] = {}
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: dict[int, None] = {}  # least recently used first

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds, idle ones included."""
        return self._num_empty_blocks + len(self._idle)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks whose content can be asked for, held or idle."""
        return len(self._key_of)

    @property
    def capacity_tokens(self) -> int:
        """Tokens that fit in all blocks."""
        return self.num_blocks * self.block_tokens

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-num_tokens // self.block_tokens)

    def allocate(self, num_tokens: int, keys: Sequence[bytes] = ()) -> BlockTable | None:
        """Blocks for so many tokens, or None when they are not free now.

        Args:
            num_tokens: more than the keys' blocks hold.
            keys: of the blocks that it begins with; those that are cached are shared.
        """
        shared = self._cached(keys)
        num_own = self.blocks_for(num_tokens) - len(shared)
        if num_own > self.num_free_blocks - sum(block in self._idle for block in shared):
            return None
        self._hold(shared)
        own = self._take(num_own, behind=shared[-1] if shared else None)
        self._hold(own)
        return self._table([*shared, *own], num_cached=len(shared))

    def adopt(self, table: BlockTable, keys: Sequence[bytes], *, num_computed_blocks: int) -> BlockTable | None:
        """Swap a table's next blocks, in which nothing is computed yet, for cached ones; None when none is cached.

        Args:
            table: not to be used, nor freed, if another one is returned.
            keys: of the table's first blocks.
            num_computed_blocks: its blocks that are computed.
        """
        shared = self._cached(itertools.islice(keys, num_computed_blocks, None))
        if not shared:
            return None
        stop = num_computed_blocks + len(shared)
        self._hold(shared)
        self._release(table.blocks[num_computed_blocks:stop])
        blocks = [*table.blocks[:num_computed_blocks], *shared, *table.blocks[stop:]]
        return self._table(blocks, num_cached=stop)

    def publish(self, table: BlockTable, keys: Sequence[bytes], *, start: int, stop: int) -> None:
        """A table's blocks from start up to stop are computed: others may share them.

        Content that is cached already stays where it is; the block's second copy is its holder's own.
        """
        for block, key in zip(table.blocks[start:stop], keys[start:stop], strict=False):
            if key not in self._block_of:
                self._block_of[key] = block
                self._key_of[block] = key

    def discard(self, table: BlockTable) -> None:
        """Forget the content of a table's blocks, shared ones too; holders keep theirs."""
        for block in table.blocks:
            self._forget(block)

    def free(self, table: BlockTable) -> None:
        """Take blocks back; each table once."""
        self._release(reversed(table.blocks))  # the beginning, which others share more likely, goes last

    @property
    def _num_empty_blocks(self) -> int:
        return sum(length for _, length in self._free)

    def _cached(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the first keys, up to the first that is not cached."""
        blocks = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _hold(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._num_holders[block] = self._num_holders.get(block, 0) + 1
            self._idle.pop(block, None)

    def _release(self, blocks: Iterable[int]) -> None:
        empty = []
        for block in blocks:
            self._num_holders[block] -= 1
            if self._num_holders[block]:
                continue
            del self._num_holders[block]
            if block in self._key_of:
                self._idle[block] = None
            else:
                empty.append(block)
        self._add_free(empty)

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]

    def _evict(self, count: int) -> None:
        evicted = list(itertools.islice(self._idle, count))
        for block in evicted:
            del self._idle[block]
            self._forget(block)
        self.num_evictions += len(evicted)
        self._add_free(evicted)

    def _take(self, needed: int, *, behind: int | None) -> list[int]:
        """Blocks out of the free ones; best those right behind a block, next best any neighbours."""
        self._evict(max(0, needed - self._num_empty_blocks))
        fitting = [index for index, (_, length) in enumerate(self._free) if length >= needed]
        if fitting:
            following = (index for index in fitting if behind is not None and self._free[index][0] == behind + 1)
            return self._cut(next(following, fitting[0]), needed)
        taken: list[int] = []
        while len(taken) < needed:
            taken += self._cut(0, min(needed - len(taken), self._free[0][1]))
        return taken

    def _cut(self, index: int, length: int) -> list[int]:
        start, available = self._free[index]
        self._free[index : index + 1] = [(start + length, available - length)] if available > length else []
        return [*range(start, start + length)]

    def _add_free(self, blocks: list[int]) -> None:
        if not blocks:
            return
        merged: list[tuple[int, int]] = []
        for start, length in sorted([*self._free, *((block, 1) for block in blocks)]):
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self._free = merged

    def _table(self, blocks: list[int], *, num_cached: int) -> BlockTable:
        size = self.block_tokens
        firsts = np.asarray(blocks, dtype=np.int64)
        gaps = np.flatnonzero(np.diff(firsts) != 1)
        return BlockTable(
            blocks=tuple(blocks),
            num_cached_tokens=num_cached * size,
            slots=(firsts[:, None] * size + np.arange(size)).ravel(),
            num_neighbour_tokens=(int(gaps[0]) + 1 if len(gaps) else len(blocks)) * size,
        )


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
    """Keys and values of every layer, each (num_slots, num_kv_heads, head_dim).

    The last block's worth of slots belongs to no sequence: ``decode_steps`` writes there what nobody reads.
    """

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
