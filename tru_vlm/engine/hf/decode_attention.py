"""Attention of one new token per sequence over the paged KV cache, all sequences at once.

The lengths and the blocks of the sequences are tensors on the device, so a step of a fixed number of sequences is the
same work to launch whatever they hold: that is what a CUDA graph needs.  On CUDA it is ``decode_kernels``; elsewhere,
plain PyTorch, which is slower than row by row there and exists to test everything around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from tru_vlm.engine.hf.kv_cache import KvShape

MAX_SPLITS = 32
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""Of outputs around one."""


@dataclass(frozen=True, slots=True)
class DecodeLayout:
    """Where the B sequences of a decode step are.

    Attributes:
        tables: int32, (B, blocks): each sequence's blocks, in the order of its tokens; what is beyond its length is
            never read.
        lengths: int64, (B,): its tokens in the cache, the step's own included; at least 1.
        block_tokens: tokens in a block.
        num_splits: parts that a sequence's keys are attended to in, side by side.
    """

    tables: torch.Tensor
    lengths: torch.Tensor
    block_tokens: int
    num_splits: int


def num_splits_for(num_rows: int, num_kv_heads: int, device: str) -> int:
    """Parts of a sequence's keys that keep a whole GPU busy (Flash-Decoding), two programs per multiprocessor."""
    if torch.device(device).type != "cuda":
        return 1
    programs = 2 * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(MAX_SPLITS, programs // (num_rows * num_kv_heads)))


def attend_decode(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: DecodeLayout, *, scaling: float
) -> torch.Tensor:
    """One query token of each sequence over all of its keys.

    Args:
        query: (B, num_heads, head_dim).
        keys: (num_slots, num_kv_heads, head_dim), a layer of the cache; the step's own are in it.
        values: as keys.
        layout: where the sequences are.
        scaling: of the scores.

    Returns:
        (B, num_heads, head_dim).
    """
    output: torch.Tensor = torch.ops.tru_vlm.attend_decode(
        query, keys, values, layout.tables, layout.lengths, scaling, layout.block_tokens, layout.num_splits
    )
    return output


@torch.library.custom_op("tru_vlm::attend_decode", mutates_args=(), device_types="cpu")
def _attend_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
    block_tokens: int,
    num_splits: int,
) -> torch.Tensor:
    del num_splits
    longest = int(lengths.max())
    index = torch.arange(longest, device=query.device)
    seen = index < lengths[:, None]
    slots = tables[:, : -(-longest // block_tokens)].long()[:, index // block_tokens] * block_tokens
    slots = torch.where(seen, slots + index % block_tokens, 0)
    # What is not seen may hold anything, infinities too: zero times that is not zero.
    row_keys, row_values = (
        pool[slots].masked_fill(~seen[:, :, None, None], 0).transpose(1, 2) for pool in (keys, values)
    )
    out = scaled_dot_product_attention(
        query[:, :, None], row_keys, row_values, attn_mask=seen[:, None, None], scale=scaling, enable_gqa=True
    )
    return out[:, :, 0].contiguous()


@_attend_decode.register_kernel("cuda")
def _attend_decode_cuda(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
    block_tokens: int,
    num_splits: int,
) -> torch.Tensor:
    from tru_vlm.engine.hf.decode_kernels import attend

    return attend(query, keys, values, tables, lengths, scaling=scaling, block_tokens=block_tokens, splits=num_splits)


@_attend_decode.register_fake
def _attend_decode_fake(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
    block_tokens: int,
    num_splits: int,
) -> torch.Tensor:
    del keys, values, tables, lengths, scaling, block_tokens, num_splits
    return torch.empty_like(query)


def check_attend_decode(num_heads: int, shape: KvShape, block_tokens: int, device: str) -> None:
    """Compare this device's kernels with PyTorch's, on random keys; a wrong answer must not be a fast one.

    Raises:
        RuntimeError: they differ, or do not run.
    """
    random = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, block_tokens, 5 * block_tokens + 3, 40 * block_tokens - 1])
    num_blocks = 64
    tables = torch.stack([torch.randperm(num_blocks, generator=random) for _ in lengths]).int()
    query = torch.randn(len(lengths), num_heads, shape.head_dim, generator=random).to(shape.dtype)
    size = (num_blocks * block_tokens, shape.num_kv_heads, shape.head_dim)
    keys, values = (torch.randn(size, generator=random).to(shape.dtype) for _ in range(2))
    for splits in (1, 4):
        here = DecodeLayout(tables, lengths, block_tokens, splits)
        there = DecodeLayout(tables.to(device), lengths.to(device), block_tokens, splits)
        expected = attend_decode(query.float(), keys.float(), values.float(), here, scaling=shape.head_dim**-0.5)
        got = attend_decode(query.to(device), keys.to(device), values.to(device), there, scaling=shape.head_dim**-0.5)
        error = float((got.cpu().float() - expected).abs().max())
        if not error <= _TOLERANCE[shape.dtype]:
            raise RuntimeError(f"the decode kernel is off by {error:.3g} in {splits} parts")
