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
class GroupRow:
    """One row's part of a step.

    Attributes:
        table: its blocks.
        num_cached_tokens: its tokens in the cache before this step.
        start: index of its first token among the step's packed tokens.
        num_queries: its tokens in this step, one or a few.
    """

    table: BlockTable
    num_cached_tokens: int
    start: int
    num_queries: int


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """Where the G rows of a group are; they have S tokens together in this step, none more than Q.

    Attributes:
        at: int64, (S,): which of the step's packed tokens are theirs, row by row.
        num_shared_tokens: P.
        first_slot: where the shared tokens begin in the cache, when they lie side by side; else None.
        shared_slots: int64, (P,): where they are, when they do not; else None.
        own_slots: int64, (G * T,): where each row's other tokens are, filled up with any slot to the most, T >= 1.
        filled: int64, (G * Q,): as ``at``, each row filled up with its first token.
        places: int64, (S,): where the tokens of ``at`` are in ``filled``; None: the two are the same.
        unseen: (G, 1, Q, T), of the queries' dtype: -inf where a query must not see a slot, else 0.
    """

    at: torch.Tensor
    num_shared_tokens: int
    first_slot: int | None
    shared_slots: torch.Tensor | None
    own_slots: torch.Tensor
    filled: torch.Tensor
    places: torch.Tensor | None
    unseen: torch.Tensor

    @classmethod
    def build(cls, rows: Sequence[GroupRow], num_shared: int, dtype: torch.dtype) -> GroupLayout:
        """Lay out a group's rows.

        Args:
            rows: two or more.
            num_shared: tokens that all of them begin with.
            dtype: of the queries.
        """
        nums_queries = np.asarray([row.num_queries for row in rows])
        nums_seen = np.asarray([row.num_cached_tokens + 1 - num_shared for row in rows])  # by a row's first query
        query, slot = np.arange(nums_queries.max()), np.arange((nums_seen + nums_queries - 1).max())
        own = np.zeros((len(rows), len(slot)), dtype=np.int64)
        for slots, row, num_seen in zip(own, rows, nums_seen, strict=True):
            count = num_seen + row.num_queries - 1
            slots[:count] = row.table.slots[num_shared : num_shared + count]
        starts = np.asarray([row.start for row in rows])[:, None]
        is_query = query < nums_queries[:, None]
        hidden = torch.from_numpy(slot >= (nums_seen[:, None] + query * is_query)[:, :, None])[:, None]
        table = rows[0].table
        is_view = num_shared <= table.num_neighbour_tokens
        return cls(
            at=torch.from_numpy((starts + query)[is_query]),
            num_shared_tokens=num_shared,
            first_slot=int(table.slots[0]) if is_view else None,
            shared_slots=None if is_view else torch.from_numpy(table.slots[:num_shared]),
            own_slots=torch.from_numpy(own.ravel()),
            filled=torch.from_numpy((starts + query * is_query).ravel()),
            places=None if is_query.all() else torch.from_numpy(np.flatnonzero(is_query)),
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
    """The tokens of each of a group's rows over all of its keys up to their own.

    Args:
        query: (N, num_heads, head_dim), the step's packed tokens.
        keys: (num_slots, num_kv_heads, head_dim), a layer of the cache; the step's own are in it.
        values: as keys.
        group: where its rows are.
        scaling: of the scores.

    Returns:
        (S, num_heads, head_dim), in the order of ``group.at``.
    """
    shared, shared_lse = _attend_shared(query.index_select(0, group.at), keys, values, group, scaling)
    own, own_lse = _attend_own(query.index_select(0, group.filled), keys, values, group, scaling)
    # exp(a) / (exp(a) + exp(b)) is sigmoid(a - b).
    share = torch.sigmoid(shared_lse - own_lse).unsqueeze(-1).to(own.dtype)
    return torch.lerp(own, shared, share).flatten(1, 2)


def _attend_shared(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: GroupLayout, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """All tokens over what the rows share: (S, num_kv_heads, heads per key, head_dim), and log-sum-exps without it."""
    num_kv_heads, head_dim = keys.shape[1:]
    # Heads that share keys are packed as queries, and so are the rows.
    packed = query.view(len(query), num_kv_heads, -1, head_dim).transpose(0, 1).reshape(1, num_kv_heads, -1, head_dim)
    shared_keys, shared_values = (_shared(pool, group).transpose(0, 1)[None] for pool in (keys, values))
    output, lse = _attend(packed, shared_keys, shared_values, None, scaling)
    output = output.view(num_kv_heads, len(query), -1, head_dim).transpose(0, 1)
    return output, lse.view(num_kv_heads, len(query), -1).transpose(0, 1)


def _attend_own(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: GroupLayout, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`_attend_shared` over each row's own tokens; ``query`` is filled up, the result is not."""
    num_kv_heads, head_dim = keys.shape[1:]
    num_rows, _, num_queries, num_keys = group.unseen.shape
    own_keys, own_values = (
        pool.index_select(0, group.own_slots).view(num_rows, num_keys, num_kv_heads, head_dim).transpose(1, 2)
        for pool in (keys, values)
    )
    by_row = query.view(num_rows, num_queries, num_kv_heads, -1, head_dim).transpose(1, 2)
    num_sharing = by_row.shape[3]
    unseen = group.unseen.repeat_interleave(num_sharing, dim=2) if num_queries > 1 else group.unseen
    output, lse = _attend(by_row.flatten(2, 3), own_keys, own_values, unseen, scaling)
    output = output.view(num_rows, num_kv_heads, num_queries, num_sharing, head_dim).transpose(1, 2).flatten(0, 1)
    lse = lse.view(num_rows, num_kv_heads, num_queries, num_sharing).transpose(1, 2).flatten(0, 1)
    if group.places is None:
        return output, lse
    return output.index_select(0, group.places), lse.index_select(0, group.places)


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
