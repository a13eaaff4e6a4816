"""One forward pass per step: all rows' tokens packed side by side, whatever each of them is doing.

Knows the text model and the cache's slots; knows no requests and no policy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tru_vlm.engine.hf.attention import AttentionKernel, AttentionPlan, AttentionRow, VarlenLayout
from tru_vlm.engine.hf.decode_attention import DecodeLayout, num_splits_for
from tru_vlm.engine.hf.decode_steps import DecodeRow, DecodeSteps, StepInput
from tru_vlm.engine.hf.kv_cache import BlockTable, KvCache
from tru_vlm.engine.hf.shared_prefix import GroupFinder, GroupLayout, GroupRow
from tru_vlm.engine.hf.side_by_side import SideBySide
from tru_vlm.engine.hf.text_model import DeepstackInput, TextModel
from tru_vlm.engine.hf.transfer import to_device
from tru_vlm.engine.hf.vision import VisualFeatures

MIN_PART_TOKENS = 96
"""Tokens of a step's part that has a thread of its own; with fewer, products cost more for each."""


@dataclass(frozen=True, slots=True)
class RowInput:
    """One sequence's part of a step.

    Attributes:
        token_ids: int64, (n,); of an answer as a tuple.
        positions: mrope, int64, (3, n); of an answer's tokens the position of the first, the others follow.
        num_tokens: n.
        num_cached_tokens: its tokens that are in the cache already.
        table: its blocks.
        num_logits: how many of its last tokens' logits are wanted.
        visual_indices: which of the n tokens are visual; None when none is.
        features: of those tokens, in order.
    """

    token_ids: NDArray[np.int64] | tuple[int, ...]
    positions: NDArray[np.int64] | int
    num_tokens: int
    num_cached_tokens: int
    table: BlockTable
    num_logits: int
    visual_indices: NDArray[np.int64] | None = None
    features: Sequence[VisualFeatures] = ()

    @property
    def token_by_token(self) -> bool:
        """Whether its tokens are few, so that those of several rows are attended to together."""
        return self.num_tokens == 1 or isinstance(self.positions, int)


class ModelRunner:
    """Owns the language model and its cache.

    Args:
        model: the whole model.
        cache: of keys and values.
        device: where they are.
        kernel: what attends to prefill chunks.
        block_tokens: tokens in a block of the cache.
        threads: what computes a step, in parts where it is large.
    """

    def __init__(
        self,
        model: Any,
        cache: KvCache,
        device: str,
        kernel: AttentionKernel,
        *,
        block_tokens: int,
        threads: SideBySide,
    ) -> None:
        self._text_model: TextModel = model.model.language_model
        self._embed_tokens = self._text_model.embed_tokens
        self._lm_head = model.lm_head
        self._dtype: torch.dtype = self._embed_tokens.weight.dtype
        self._cache = cache
        self._device = device
        self._kernel = kernel
        self._block_tokens = block_tokens
        self._threads = threads
        self._groups = GroupFinder(block_tokens) if torch.device(device).type == "cpu" else None
        self._decode_steps: DecodeSteps | None = None

    def decode_in_batches(self, *, max_step_tokens: int, max_sequence_tokens: int, spare_block: int) -> DecodeSteps:
        """From now on, attend to all decoding rows at once, and run steps of nothing else in fixed shapes.

        Args:
            max_step_tokens: most tokens of all rows in a step.
            max_sequence_tokens: most tokens of a row.
            spare_block: a block that belongs to no sequence.

        Returns:
            those steps, to be captured.
        """
        self._decode_steps = DecodeSteps(
            self._decode,
            max_step_tokens=max_step_tokens,
            max_blocks=-(-max_sequence_tokens // self._block_tokens),
            block_tokens=self._block_tokens,
            spare_block=spare_block,
            num_kv_heads=self._cache.keys[0].shape[1],
            device=self._device,
        )
        return self._decode_steps

    def decode_row_by_row(self) -> None:
        """Undo :meth:`decode_in_batches`."""
        self._decode_steps = None

    def _decode(self, step: StepInput) -> torch.Tensor:
        """Logits (B, vocabulary), float32, of one token of each row; nothing here waits for the device."""
        plan = AttentionPlan(self._cache, step.slots, decode=step.attention)
        hidden = self._text_model(self._embed_tokens(step.token_ids), step.positions, plan)
        logits: torch.Tensor = self._lm_head(hidden).float()
        return logits

    def run(self, rows: Sequence[RowInput]) -> torch.Tensor | None:
        """Advance the rows: their keys and values go into the cache.

        Running the same rows again is harmless: the same slots are written with the same values.

        Returns:
            the logits that are wanted of each row, in the rows' order, float32, (R, vocabulary); None when R is 0.
        """
        if self._decode_steps is not None and all(isinstance(row.positions, int) for row in rows):
            return self._decode_steps.run([token for row in rows for token in _decode_rows(row)])
        given = self._threads.run([self._prepare(part) for part in self._parts(rows)])
        logits = [part for part in given if part is not None]
        return torch.cat(logits) if len(logits) > 1 else next(iter(logits), None)

    def _parts(self, rows: Sequence[RowInput]) -> list[Sequence[RowInput]]:
        """The rows, or two parts of them of about the same number of tokens, where threads and tokens suffice."""
        ends = list(itertools.accumulate(row.num_tokens for row in rows))
        if self._threads.num_threads == 1 or ends[-1] < 2 * MIN_PART_TOKENS:
            return [rows]
        num_first, num_tokens = min(enumerate(ends, 1), key=lambda end: abs(2 * end[1] - ends[-1]))
        if min(num_tokens, ends[-1] - num_tokens) < MIN_PART_TOKENS:
            return [rows]
        return [rows[:num_first], rows[num_first:]]

    def _prepare(self, rows: Sequence[RowInput]) -> Callable[[], torch.Tensor | None]:
        """What computes the rows' logits; two of these touch different parts of the cache, and nothing else."""
        ends = list(itertools.accumulate(row.num_tokens for row in rows))
        starts = [0, *ends[:-1]]
        token_ids, positions, slots = self._packed(rows, starts)
        plan = self._attention_plan(rows, starts, slots)
        embeddings = self._embed_tokens(token_ids)
        deepstack = self._insert_features(rows, starts, embeddings)
        wanted = [place for row, end in zip(rows, ends, strict=True) for place in range(end - row.num_logits, end)]
        # Where nothing is wanted it is one token's all the same: not every layer takes none.
        at = to_device(torch.tensor(wanted or [0]), self._device) if len(wanted) < ends[-1] else None
        return partial(self._compute, embeddings, positions, plan, deepstack, at, has_logits=bool(wanted))

    @torch.inference_mode()
    def _compute(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        plan: AttentionPlan,
        deepstack: DeepstackInput | None,
        wanted: torch.Tensor | None,
        *,
        has_logits: bool,
    ) -> torch.Tensor | None:
        """Logits of the wanted ones among packed tokens; None where there are to be none."""
        hidden = self._text_model(embeddings, positions, plan, deepstack, wanted)
        if not has_logits:
            return None
        logits: torch.Tensor = self._lm_head(hidden).float()
        return logits

    def _packed(
        self, rows: Sequence[RowInput], starts: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids (N,), positions (3, N) and cache slots (N,) of all rows, on the device."""
        packed = np.empty((5, starts[-1] + rows[-1].num_tokens), dtype=np.int64)
        for row, start in zip(rows, starts, strict=True):
            end = start + row.num_tokens
            packed[0, start:end] = row.token_ids
            positions = row.positions
            packed[1:4, start:end] = positions + np.arange(end - start) if isinstance(positions, int) else positions
            packed[4, start:end] = row.table.slots[row.num_cached_tokens : row.num_cached_tokens + row.num_tokens]
        on_device = to_device(torch.from_numpy(packed), self._device)  # one copy for all of them
        return on_device[0], on_device[1:4], on_device[4]

    def _attention_plan(self, rows: Sequence[RowInput], starts: Sequence[int], slots: torch.Tensor) -> AttentionPlan:
        if self._kernel == "flash_attention_2":
            return AttentionPlan(self._cache, slots, varlen=self._varlen_layout(rows))
        if self._decode_steps is None:
            return self._plan_row_by_row(rows, starts, slots)
        placed = list(zip(rows, starts, strict=True))
        chunks = [self._attention_row(row, start) for row, start in placed if not row.token_by_token]
        single = [(row, start) for row, start in placed if row.token_by_token]
        if not single:
            return AttentionPlan(self._cache, slots, chunks)
        places = [start + index for row, start in single for index in range(row.num_tokens)]
        at = to_device(torch.tensor(places), self._device)
        layout = self._decode_layout([row for row, _ in single])
        return AttentionPlan(self._cache, slots, chunks, decode=layout, decode_at=at if chunks else None)

    def _plan_row_by_row(self, rows: Sequence[RowInput], starts: Sequence[int], slots: torch.Tensor) -> AttentionPlan:
        placed = list(zip(rows, starts, strict=True))
        if self._groups is None:
            return AttentionPlan(self._cache, slots, [self._attention_row(row, start) for row, start in placed])
        single = [(row, start) for row, start in placed if row.token_by_token]
        groups: list[GroupLayout] = []
        grouped: set[int] = set()
        for group in self._groups.find([row.table for row, _ in single]):
            members = [single[member] for member in group.members]
            grouped.update(start for _, start in members)
            tokens = [GroupRow(row.table, row.num_cached_tokens, start, row.num_tokens) for row, start in members]
            groups.append(GroupLayout.build(tokens, group.num_shared_tokens, self._dtype))
        others = [self._attention_row(row, start) for row, start in placed if start not in grouped]
        return AttentionPlan(self._cache, slots, others, groups=groups)

    def _decode_layout(self, rows: Sequence[RowInput]) -> DecodeLayout:
        tokens = [(row.table, row.num_cached_tokens + 1 + index) for row in rows for index in range(row.num_tokens)]
        tables = np.zeros((len(tokens), max(row.table.num_blocks for row in rows)), dtype=np.int32)
        for blocks, (table, _) in zip(tables, tokens, strict=True):
            blocks[: table.num_blocks] = table.blocks
        lengths = to_device(torch.tensor([num_keys for _, num_keys in tokens]), self._device)
        splits = num_splits_for(len(tokens), self._cache.keys[0].shape[1], self._device)
        return DecodeLayout(to_device(torch.from_numpy(tables), self._device), lengths, self._block_tokens, splits)

    def _varlen_layout(self, rows: Sequence[RowInput]) -> VarlenLayout:
        num_queries = [row.num_tokens for row in rows]
        num_keys = [row.num_cached_tokens + row.num_tokens for row in rows]
        key_slots = np.concatenate([row.table.slots[:count] for row, count in zip(rows, num_keys, strict=True)])
        bounds = np.cumsum([[0, *num_queries], [0, *num_keys]], axis=1).astype(np.int32)
        on_device = to_device(torch.from_numpy(bounds), self._device)
        return VarlenLayout(
            query_starts=on_device[0],
            key_starts=on_device[1],
            max_queries=max(num_queries),
            max_keys=max(num_keys),
            key_slots=to_device(torch.from_numpy(key_slots), self._device),
        )

    def _attention_row(self, row: RowInput, start: int) -> AttentionRow:
        num_keys = row.num_cached_tokens + row.num_tokens
        contiguous = num_keys <= row.table.num_neighbour_tokens
        return AttentionRow(
            start=start,
            num_queries=row.num_tokens,
            num_keys=num_keys,
            first_slot=int(row.table.slots[0]) if contiguous else None,
            slots=None if contiguous else to_device(torch.from_numpy(row.table.slots[:num_keys]), self._device),
            mask=self._mask(row) if row.num_tokens > 1 and row.num_cached_tokens else None,
        )

    def _mask(self, row: RowInput) -> torch.Tensor:
        """Causal mask of a later prefill chunk: (num_tokens, num_keys), 0 where a key may be seen, else -inf."""
        shape = (row.num_tokens, row.num_cached_tokens + row.num_tokens)
        mask = torch.full(shape, -math.inf, dtype=self._dtype, device=self._device)
        return mask.triu_(row.num_cached_tokens + 1)

    def _insert_features(
        self, rows: Sequence[RowInput], starts: Sequence[int], embeddings: torch.Tensor
    ) -> DeepstackInput | None:
        """Put visual features into the embeddings (N, hidden); returns what the text layers add later on."""
        parts = [part for row in rows for part in row.features]
        if not parts:
            return None
        features = VisualFeatures.joined(parts)
        placed = zip(rows, starts, strict=True)
        indices = np.concatenate(
            [row.visual_indices + start for row, start in placed if row.visual_indices is not None]
        )
        at = to_device(torch.from_numpy(indices), self._device)
        embeddings.index_copy_(0, at, features.embeddings.to(embeddings.dtype))
        return DeepstackInput(at, features.deepstack)


def _decode_rows(row: RowInput) -> Iterator[DecodeRow]:
    """Each token of an answer as a row of its own; those before it are in the cache by then."""
    assert isinstance(row.positions, int)  # noqa: S101 - a prompt's tokens differ in their three positions
    for index, token in enumerate(row.token_ids):
        yield DecodeRow(int(token), row.positions + index, row.num_cached_tokens + 1 + index, row.table)
