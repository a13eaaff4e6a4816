"""Attention of rows that begin with the same blocks: to those once for all rows, then to each row's own tokens.

Without it each row reads the shared keys and values for itself and, where its own tokens do not lie right behind them,
copies them first, at every step.  The two parts are put together by their log-sum-exps (Hydragen, Juravsky et al.
2024, arXiv:2402.05099).  For CPUs: elsewhere the kernels of ``decode_attention`` and flash-attn take all rows at once.
Knows tensors and slots; knows no requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tru_vlm.engine.hf.kv_cache import BlockTable

MIN_SHARED_TOKENS = 64
"""With fewer, putting the parts together costs what it saves."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that begin with the same blocks.

    Attributes:
        members: their indices, in order; two or more.
        num_shared_tokens: what is in those blocks.
    """

    members: tuple[int, ...]
    num_shared_tokens: int


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """Where the G rows of a group are; each has one token in this step.

    Attributes:
        at: int64, (G,): which of the step's packed tokens are theirs.
        num_shared_tokens: P.
        first_slot: where the shared tokens begin in the cache, when they lie side by side; else None.
        shared_slots: int64, (P,): where they are, when they do not; else None.
        own_slots: int64, (G * T,): where each row's other tokens are, filled up with any slot to the most, T >= 1.
        unseen: (G, 1, 1, T), of the queries' dtype: -inf where a row has been filled up, else 0.
    """

    at: torch.Tensor
    num_shared_tokens: int
    first_slot: int | None
    shared_slots: torch.Tensor | None
    own_slots: torch.Tensor
    unseen: torch.Tensor

    @classmethod
    def build(
        cls,
        tables: Sequence[BlockTable],
        num_keys: Sequence[int],
        at: Sequence[int],
        num_shared: int,
        dtype: torch.dtype,
    ) -> GroupLayout:
        """Lay out a group's rows.

        Args:
            tables: of the rows.
            num_keys: their tokens in the cache, the step's own included.
            at: where their tokens are among the packed ones.
            num_shared: tokens that all of them begin with.
            dtype: of the queries.
        """
        nums_own = np.asarray(num_keys) - num_shared
        index = np.arange(nums_own.max())
        own = np.zeros((len(tables), len(index)), dtype=np.int64)
        for slots, table, count in zip(own, tables, nums_own, strict=True):
            slots[:count] = table.slots[num_shared : num_shared + count]
        hidden = torch.from_numpy(index >= nums_own[:, None])[:, None, None]
        is_view = num_shared <= tables[0].num_neighbour_tokens
        return cls(
            at=torch.tensor(at),
            num_shared_tokens=num_shared,
            first_slot=int(tables[0].slots[0]) if is_view else None,
            shared_slots=None if is_view else torch.from_numpy(tables[0].slots[:num_shared]),
            own_slots=torch.from_numpy(own.ravel()),
            unseen=torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -math.inf),
        )


class GroupFinder:
    """Finds groups; remembers its last answer, for most steps run the same rows."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._tables: tuple[BlockTable, ...] = ()
        self._groups: tuple[Group, ...] = ()

    def find(self, tables: Sequence[BlockTable]) -> tuple[Group, ...]:
        """The groups among rows with these tables; a row is in one at most."""
        if len(tables) != len(self._tables) or any(a is not b for a, b in zip(tables, self._tables, strict=True)):
            self._tables = tuple(tables)
            self._groups = tuple(self._split(range(len(tables)), 0))
        return self._groups

    def _split(self, rows: Sequence[int], num_shared_blocks: int) -> Iterator[Group]:
        """Groups of rows whose first blocks are the same: as long a beginning as two of them share comes first."""
        followers: dict[int, list[int]] = {}
        for row in rows:
            # What is shared is full, and a row has a token behind it: no table ends here.
            followers.setdefault(self._tables[row].blocks[num_shared_blocks], []).append(row)
        larger = [members for members in followers.values() if len(members) > 1]
        for members in larger:
            yield from self._split(members, self._num_common_blocks(members))
        num_tokens = num_shared_blocks * self._block_tokens
        if not larger and num_tokens >= MIN_SHARED_TOKENS:
            yield Group(tuple(rows), num_tokens)

    def _num_common_blocks(self, rows: Sequence[int]) -> int:
        tables = [self._tables[row].blocks for row in rows]
        shortest = min(map(len, tables))
        blocks = np.asarray([table[:shortest] for table in tables])
        differing = np.flatnonzero((blocks != blocks[0]).any(axis=0))
        return int(differing[0]) if len(differing) else shortest - 1


def attend_group(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: GroupLayout, *, scaling: float
) -> torch.Tensor:
    """One query token of each of a group's rows over all of its keys.

    Args:
        query: (N, num_heads, head_dim), the step's packed tokens.
        keys: (num_slots, num_kv_heads, head_dim), a layer of the cache; the step's own are in it.
        values: as keys.
        group: where its rows are.
        scaling: of the scores.

    Returns:
        (G, num_heads, head_dim), in the order of ``group.at``.
    """
    num_rows, num_kv_heads, head_dim = len(group.at), *keys.shape[1:]
    # Heads that share keys are packed as queries, and for what the rows share, the rows are too.
    single = query.index_select(0, group.at).view(num_rows, num_kv_heads, -1, head_dim)
    packed = single.transpose(0, 1).reshape(1, num_kv_heads, -1, head_dim)
    shared_keys, shared_values = (_shared(pool, group).transpose(0, 1)[None] for pool in (keys, values))
    shared, shared_lse = _attend(packed, shared_keys, shared_values, None, scaling)
    own_keys, own_values = (
        pool.index_select(0, group.own_slots).view(num_rows, -1, num_kv_heads, head_dim).transpose(1, 2)
        for pool in (keys, values)
    )
    own, own_lse = _attend(single, own_keys, own_values, group.unseen, scaling)
    shared = shared.view(num_kv_heads, num_rows, -1, head_dim).transpose(0, 1)
    shared_lse = shared_lse.view(num_kv_heads, num_rows, -1).transpose(0, 1)
    # exp(a) / (exp(a) + exp(b)) is sigmoid(a - b).
    share = torch.sigmoid(shared_lse - own_lse).unsqueeze(-1).to(own.dtype)
    return torch.lerp(own, shared, share).flatten(1, 2)


def _shared(pool: torch.Tensor, group: GroupLayout) -> torch.Tensor:
    """The group's shared part of (num_slots, num_kv_heads, head_dim)."""
    if group.first_slot is not None:
        return pool.narrow(0, group.first_slot, group.num_shared_tokens)
    assert group.shared_slots is not None  # noqa: S101 - one of the two is set
    return pool.index_select(0, group.shared_slots)


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """What scaled_dot_product_attention runs on a CPU, and the scores' log-sum-exp, which that does not return."""
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001 - the only way to the latter
        query, keys, values, attn_mask=mask, scale=scaling
    )
    return output, lse
