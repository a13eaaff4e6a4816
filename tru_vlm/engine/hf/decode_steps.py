"""Decode steps in fixed shapes, so that CUDA graphs can replay them.

A large model's step is many hundred small kernels, and launching them one by one takes longer than running them.

A step of R rows runs as one of the next larger size.  The rows that fill it up write to a block that nobody owns, and
nobody reads what comes of them.  Knows rows' numbers and blocks; knows no model and no sampling.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tru_vlm.engine.hf.decode_attention import DecodeLayout, num_splits_for
from tru_vlm.engine.hf.kv_cache import BlockTable

log = logging.getLogger(__name__)

_WARM_UP_RUNS = 2
"""Before a capture, so that libraries have allocated and chosen what they will use."""


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One sequence's newest token, or one of the draft behind it; a draft's tokens stand in the same step, in order.

    Attributes:
        token_id: the token.
        position: its mrope position, the same in all three dimensions.
        num_keys: the sequence's tokens in the cache, this one included.
        table: its blocks.
    """

    token_id: int
    position: int
    num_keys: int
    table: BlockTable


@dataclass(frozen=True, slots=True)
class StepInput:
    """A step of B rows on the device.

    Attributes:
        token_ids: int64, (B,).
        positions: mrope, int64, (3, B).
        slots: int64, (B,): where the tokens go in the cache.
        attention: where the rows' keys are.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    attention: DecodeLayout


Forward = Callable[[StepInput], torch.Tensor]
"""Logits (B, vocabulary) of a step."""


def step_sizes(max_step_tokens: int) -> list[int]:
    """Numbers of rows that steps are run with: 1, 2, 4, then every eighth, and the most."""
    sizes = {1, 2, 4, *range(8, max_step_tokens, 8), max_step_tokens}
    return sorted(size for size in sizes if size <= max_step_tokens)


class DecodeSteps:
    """Runs decode steps of up to a whole batch.

    Args:
        forward: the model on a step.
        max_step_tokens: most rows.
        max_blocks: most blocks of one sequence.
        block_tokens: tokens in a block.
        spare_block: a block of the cache that belongs to no sequence.
        num_kv_heads: of the model.
        device: where it runs.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        max_step_tokens: int,
        max_blocks: int,
        block_tokens: int,
        spare_block: int,
        num_kv_heads: int,
        device: str,
    ) -> None:
        self.sizes = step_sizes(max_step_tokens)
        self._forward = forward
        self._block_tokens = block_tokens
        self._spare_block = spare_block
        self._splits = {size: num_splits_for(size, num_kv_heads, device) for size in self.sizes}
        pins = torch.device(device).type == "cuda"  # copies from pinned memory do not stop the host
        # Rows of the numbers: token, position three times, slot, length.
        self._host = torch.zeros((6, max_step_tokens), dtype=torch.int64, pin_memory=pins)
        self._host_tables = torch.zeros((max_step_tokens, max_blocks), dtype=torch.int32, pin_memory=pins)
        self._numbers = torch.zeros_like(self._host, device=device)
        self._tables = torch.zeros_like(self._host_tables, device=device)
        self._written: list[BlockTable | object | None] = [object()] * max_step_tokens  # nothing yet
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    @torch.inference_mode()
    def capture(self) -> None:
        """Record every size as a CUDA graph; they share one pool of memory, for no two run at once.

        Raises:
            RuntimeError: if something in the model cannot be recorded.
        """
        self._fill([], self.sizes[-1])
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self.sizes):  # the largest first: the others fit into its memory
            step = self._input(size)
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP_RUNS):
                    self._forward(step)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                logits = self._forward(step)
            self._graphs[size] = graph, logits
        torch.cuda.synchronize()
        log.info("decode steps of %s rows are CUDA graphs", ", ".join(map(str, self.sizes)))

    def run(self, rows: Sequence[DecodeRow]) -> torch.Tensor:
        """Advance each row by its token.

        Returns:
            logits, (R, vocabulary); with graphs, valid until the next call.
        """
        size = self.sizes[bisect_left(self.sizes, len(rows))]
        self._fill(rows, size)
        if size not in self._graphs:
            return self._forward(self._input(size))[: len(rows)]
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[: len(rows)]

    def _input(self, size: int) -> StepInput:
        numbers = self._numbers[:, :size]
        layout = DecodeLayout(self._tables[:size], numbers[5], self._block_tokens, self._splits[size])
        return StepInput(numbers[0], numbers[1:4], numbers[4], layout)

    def _fill(self, rows: Sequence[DecodeRow], size: int) -> None:
        """Write the step to the device.

        The host's buffers may be written to again: whoever samples has waited for the step before, and so for its
        copies.
        """
        numbers = self._host.numpy()
        for index, row in enumerate(rows):
            slot = row.table.slots[row.num_keys - 1]
            numbers[:, index] = (row.token_id, row.position, row.position, row.position, slot, row.num_keys)
            self._write_table(index, row.table)
        numbers[:, len(rows) : size] = [[0], [0], [0], [0], [self._spare_block * self._block_tokens], [1]]
        for index in range(len(rows), size):
            self._write_table(index, None)
        self._numbers.copy_(self._host, non_blocking=True)

    def _write_table(self, index: int, table: BlockTable | None) -> None:
        """A row's blocks; a sequence keeps its table, so that most steps write none."""
        if self._written[index] is table:
            return
        blocks = (self._spare_block,) if table is None else table.blocks
        self._host_tables[index, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        self._tables[index, : len(blocks)].copy_(self._host_tables[index, : len(blocks)], non_blocking=True)
        self._written[index] = table
