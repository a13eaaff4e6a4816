"""Attention of a text layer: keep new keys and values in the cache, attend row by row.

A row attends to its own tokens only, through its own view of the cache, so its result does not depend on its
neighbours.  Knows tensors and slots; knows no requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import scaled_dot_product_attention

from tru_vlm.engine.hf.decode_attention import DecodeLayout, attend_decode
from tru_vlm.engine.hf.kv_cache import KvCache
from tru_vlm.engine.hf.shared_prefix import GroupLayout, attend_group

AttentionKernel = Literal["sdpa", "flash_attention_2"]


@dataclass(frozen=True, slots=True)
class AttentionRow:
    """One sequence's part of a step.

    Attributes:
        start: index of its first token among the step's packed tokens.
        num_queries: its tokens in this step.
        num_keys: its tokens in the cache, those of this step included.
        first_slot: where its tokens begin in the cache, when they lie side by side; else None.
        slots: int64, (num_keys,): where its tokens are, when they do not lie side by side; else None.
        mask: (num_queries, num_keys), 0 and -inf, when a query must not see every key; else None.
    """

    start: int
    num_queries: int
    num_keys: int
    first_slot: int | None
    slots: torch.Tensor | None = None
    mask: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class VarlenLayout:
    """The same rows for flash-attn's kernel for packed sequences of different lengths.

    Attributes:
        query_starts: int32, (R + 1,): where each row's queries begin among the packed tokens, and the end.
        key_starts: int32, (R + 1,): the same among the rows' gathered keys.
        max_queries: of any row.
        max_keys: of any row.
        key_slots: int64, (key_starts[-1],): where the rows' keys are in the cache.
    """

    query_starts: torch.Tensor
    key_starts: torch.Tensor
    max_queries: int
    max_keys: int
    key_slots: torch.Tensor


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """A step's layout, shared by all layers.

    Attributes:
        cache: keys and values.
        new_slots: int64, (N,): where the step's N packed tokens go in the cache.
        rows: the sequences, in the order of their tokens; for SDPA, row by row.
        groups: sequences with one token in this step that begin alike, group by group; ``rows`` has the others.
        varlen: the sequences for flash-attn, all at once; None takes ``rows``.
        decode: sequences with one token in this step, all at once, where their kernel runs; ``rows`` has the others.
        decode_at: int64: which of the packed tokens theirs are; None: all of them.
    """

    cache: KvCache
    new_slots: torch.Tensor
    rows: Sequence[AttentionRow] = ()
    varlen: VarlenLayout | None = None
    groups: Sequence[GroupLayout] = ()
    decode: DecodeLayout | None = None
    decode_at: torch.Tensor | None = None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    *,
    layer: int,
    scaling: float,
) -> torch.Tensor:
    """Attention of packed rows over the cache, which takes their keys and values.

    Args:
        query: (N, num_heads, head_dim).
        key: (N, num_kv_heads, head_dim).
        value: (N, num_kv_heads, head_dim).
        plan: the step's layout.
        layer: which of the cache's.
        scaling: of the scores.

    Returns:
        (N, num_heads, head_dim).
    """
    keys, values = plan.cache.keys[layer], plan.cache.values[layer]
    keys.index_copy_(0, plan.new_slots, key)
    values.index_copy_(0, plan.new_slots, value)
    if plan.varlen is not None:
        return _attend_packed(query, keys, values, plan.varlen, scaling)
    if plan.decode is not None and plan.decode_at is None:
        return attend_decode(query, keys, values, plan.decode, scaling=scaling)
    if plan.decode is not None or plan.groups:
        return _attend_apart(query, keys, values, plan, scaling)
    return _attend_rows(query, keys, values, plan.rows, scaling)


def _attend_apart(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, plan: AttentionPlan, scaling: float
) -> torch.Tensor:
    """What is attended to together, and the other sequences row by row; (N, num_heads, head_dim)."""
    output = torch.empty_like(query)
    for group in plan.groups:
        output.index_copy_(0, group.at, attend_group(query, keys, values, group, scaling=scaling))
    if plan.decode is not None:
        assert plan.decode_at is not None  # noqa: S101 - else nothing is apart
        single = attend_decode(query.index_select(0, plan.decode_at), keys, values, plan.decode, scaling=scaling)
        output.index_copy_(0, plan.decode_at, single)
    if not plan.rows:
        return output
    rest = _attend_rows(query, keys, values, plan.rows, scaling)
    begin = 0
    for row in plan.rows:
        output[row.start : row.start + row.num_queries] = rest[begin : begin + row.num_queries]
        begin += row.num_queries
    return output


def _attend_rows(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rows: Sequence[AttentionRow], scaling: float
) -> torch.Tensor:
    """Row by row; (N, num_heads, head_dim)."""
    num_tokens, _, head_dim = query.shape
    # A single query's heads that share keys are packed as its queries: (1, num_kv_heads, heads per key, head_dim).
    single = query.reshape(num_tokens, 1, keys.shape[1], -1, head_dim).unbind(0)
    keys, values = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
    outputs = []
    for row in rows:
        row_keys, row_values = _of_row(keys, row), _of_row(values, row)
        if row.num_queries == 1:
            out = scaled_dot_product_attention(single[row.start], row_keys, row_values, scale=scaling)
            outputs.append(out.reshape(1, -1, head_dim))
        else:
            part = query[row.start : row.start + row.num_queries]
            outputs.append(_attend_many(part, row_keys, row_values, row.mask, scaling))
    return torch.cat(outputs)


def _attend_packed(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: VarlenLayout, scaling: float
) -> torch.Tensor:
    """All rows in one kernel; (N, num_heads, head_dim)."""
    from flash_attn import flash_attn_varlen_func

    # Its causal mask is aligned at the last query and key, as a later prefill chunk needs it.
    output: torch.Tensor = flash_attn_varlen_func(
        query,
        keys.index_select(0, layout.key_slots),
        values.index_select(0, layout.key_slots),
        cu_seqlens_q=layout.query_starts,
        cu_seqlens_k=layout.key_starts,
        max_seqlen_q=layout.max_queries,
        max_seqlen_k=layout.max_keys,
        softmax_scale=scaling,
        causal=True,
    )
    return output


def _of_row(pool: torch.Tensor, row: AttentionRow) -> torch.Tensor:
    """The row's part of (1, num_kv_heads, num_slots, head_dim): a view where its tokens lie side by side."""
    if row.first_slot is not None:
        return pool.narrow(2, row.first_slot, row.num_keys)
    assert row.slots is not None  # noqa: S101 - one of the two is set
    by_slot = pool[0].transpose(0, 1)  # as it lies in memory: all heads of a slot are copied at once
    return by_slot.index_select(0, row.slots).transpose(0, 1)[None]


def _attend_many(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Queries (n, num_heads, head_dim) of a prefill chunk; without a mask they are a sequence's first tokens."""
    out = scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)
