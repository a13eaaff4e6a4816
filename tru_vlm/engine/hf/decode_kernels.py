"""Triton kernels of ``decode_attention``: attention over paged keys in parts, and their sum.

The parts are Flash-Decoding's (https://pytorch.org/blog/flash-decoding/), the running softmax is that of
FlashAttention (Dao et al., 2022, https://arxiv.org/abs/2205.14135, algorithm 1).  Heads that share keys are the rows of
one matrix product, so that every key is read once.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

TILE_TOKENS = 64
MIN_ROWS = 16
"""Of a matrix product on tensor cores; fewer heads are padded."""


@triton.jit
def _attend_part(
    query,
    keys,
    values,
    tables,
    lengths,
    sums,
    stats,
    scaling,
    table_stride,
    slot_stride,
    num_heads: tl.constexpr,
    group: tl.constexpr,
    padded_group: tl.constexpr,
    head_dim: tl.constexpr,
    block_tokens: tl.constexpr,
    tile_tokens: tl.constexpr,
    num_splits: tl.constexpr,
):
    """One part of one sequence's keys, for the heads that share a key head.

    Writes sums (rows, num_heads, num_splits, head_dim), the values weighted by exp2(score - highest), and stats
    (rows, num_heads, num_splits, 2): the highest score, in powers of two, and the sum of the weights.
    """
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lengths + row)
    part = tl.cdiv(tl.cdiv(length, tile_tokens), num_splits) * tile_tokens
    begin = split * part
    end = tl.minimum(begin + part, length)

    members = tl.arange(0, padded_group)
    is_head = members < group
    heads = kv_head * group + members
    dims = tl.arange(0, head_dim)
    at = (row * num_heads + heads[:, None]) * head_dim + dims[None, :]
    rows = tl.load(query + at, mask=is_head[:, None], other=0.0)

    highest = tl.full([padded_group], -float("inf"), tl.float32)
    total = tl.zeros([padded_group], tl.float32)
    weighted = tl.zeros([padded_group, head_dim], tl.float32)
    for first in range(begin, end, tile_tokens):
        index = first + tl.arange(0, tile_tokens)
        is_seen = index < end
        block = tl.load(tables + row * table_stride + index // block_tokens, mask=is_seen, other=0)
        slot = block.to(tl.int64) * block_tokens + index % block_tokens
        place = slot[:, None] * slot_stride + kv_head * head_dim + dims[None, :]
        tile = tl.load(keys + place, mask=is_seen[:, None], other=0.0)
        scores = tl.dot(rows, tl.trans(tile), input_precision="ieee") * scaling
        scores = tl.where(is_seen[None, :], scores, -float("inf"))
        peak = tl.maximum(highest, tl.max(scores, 1))  # finite: every tile has a key that is seen
        fade = tl.exp2(highest - peak)
        weights = tl.exp2(scores - peak[:, None])
        tile = tl.load(values + place, mask=is_seen[:, None], other=0.0)
        total = total * fade + tl.sum(weights, 1)
        weighted = weighted * fade[:, None] + tl.dot(weights.to(tile.dtype), tile, input_precision="ieee")
        highest = peak

    cell = (row * num_heads + heads) * num_splits + split
    tl.store(sums + cell[:, None] * head_dim + dims[None, :], weighted, mask=is_head[:, None])
    tl.store(stats + cell * 2, highest, mask=is_head)
    tl.store(stats + cell * 2 + 1, total, mask=is_head)


@triton.jit
def _join_parts(
    sums,
    stats,
    output,
    head_dim: tl.constexpr,
    num_splits: tl.constexpr,
    padded_splits: tl.constexpr,
):
    """The parts of one head of one sequence as one output (head_dim,); parts without keys weigh nothing."""
    cell = tl.program_id(0)
    splits = tl.arange(0, padded_splits)
    is_split = splits < num_splits
    dims = tl.arange(0, head_dim)
    base = cell * num_splits + splits
    highest = tl.load(stats + base * 2, mask=is_split, other=-float("inf"))
    totals = tl.load(stats + base * 2 + 1, mask=is_split, other=0.0)
    weights = tl.exp2(highest - tl.max(highest, 0))
    parts = tl.load(sums + base[:, None] * head_dim + dims[None, :], mask=is_split[:, None], other=0.0)
    joined = tl.sum(parts * weights[:, None], 0) / tl.sum(totals * weights, 0)
    tl.store(output + cell * head_dim + dims, joined)


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scaling: float,
    block_tokens: int,
    splits: int,
) -> torch.Tensor:
    """See ``decode_attention.attend_decode``.  head_dim is a power of two."""
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads = keys.shape[1]
    group = num_heads // num_kv_heads
    query = query.contiguous()
    output = torch.empty_like(query)
    sums = torch.empty((num_rows, num_heads, splits, head_dim), dtype=torch.float32, device=query.device)
    stats = torch.empty((num_rows, num_heads, splits, 2), dtype=torch.float32, device=query.device)
    _attend_part[(num_rows, num_kv_heads, splits)](
        query,
        keys,
        values,
        tables,
        lengths,
        sums,
        stats,
        scaling * math.log2(math.e),
        tables.stride(0),
        keys.stride(0),
        num_heads=num_heads,
        group=group,
        padded_group=max(MIN_ROWS, triton.next_power_of_2(group)),
        head_dim=head_dim,
        block_tokens=block_tokens,
        tile_tokens=TILE_TOKENS,
        num_splits=splits,
    )
    _join_parts[(num_rows * num_heads,)](
        sums, stats, output, head_dim=head_dim, num_splits=splits, padded_splits=triton.next_power_of_2(splits)
    )
    return output
