"""Decides who runs in a step, and how much of each prompt.  This scheduler never sees a tensor, a token or a clock.

Waiting sequences are admitted first come, first served, once a row and blocks for their prompt *and* their whole
answer are free: nothing is ever taken back from a running sequence.  Every decoding sequence runs in every step; a
bounded number of prompt tokens rides along, so that long prompts do not stall running answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from tru_vlm.engine.hf.kv_cache import BlockManager, BlockTable
from tru_vlm.errors import ContextLengthError

OLDEST_SHARE = 4
"""The oldest prefilling sequence gets at least 1/4 of a step's prompt tokens; the shortest gets the rest first."""


class Phase(Enum):
    """Where a sequence is; PREFILLING includes the vision tower's work on its frames."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"


@dataclass(slots=True, eq=False)
class Sequence:
    """What the scheduler knows of a request.

    Attributes:
        id: the request's id.
        num_prompt_tokens: prompt, visual tokens included.
        max_new_tokens: most tokens of the answer.
        num_ready_tokens: the prompt's beginning that can be prefilled: up to the first visual token without features.
        num_computed_tokens: tokens whose keys and values are in the cache.
        phase: where it is.
        table: its blocks, once admitted.
    """

    id: str
    num_prompt_tokens: int
    max_new_tokens: int
    num_ready_tokens: int
    num_computed_tokens: int = 0
    phase: Phase = Phase.WAITING
    table: BlockTable | None = None

    @property
    def num_reserved_tokens(self) -> int:
        """Tokens that it may hold in the cache at its end."""
        return self.num_prompt_tokens + self.max_new_tokens

    @property
    def num_uncomputed_prompt_tokens(self) -> int:
        """Prompt tokens still to prefill."""
        return self.num_prompt_tokens - self.num_computed_tokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """A sequence's part of a step: ``num_tokens`` tokens from its token ``start`` on."""

    sequence: Sequence
    start: int
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Whether a new token follows: the prompt is complete with this chunk."""
        return self.start + self.num_tokens >= self.sequence.num_prompt_tokens


class Scheduler:
    """Holds all sequences from submission to their end."""

    def __init__(
        self, *, blocks: BlockManager, max_batch_size: int, prefill_chunk_tokens: int, context_tokens: int
    ) -> None:
        self._blocks = blocks
        self._max_batch_size = max_batch_size
        self._prefill_chunk_tokens = prefill_chunk_tokens
        self._context_tokens = context_tokens
        self._waiting: dict[str, Sequence] = {}
        self._running: dict[str, Sequence] = {}

    @property
    def num_waiting(self) -> int:
        """Sequences submitted and not yet admitted."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences in the batch."""
        return len(self._running)

    @property
    def num_used_tokens(self) -> int:
        """Tokens of the cache that are reserved."""
        return (self._blocks.num_blocks - self._blocks.num_free_blocks) * self._blocks.block_tokens

    def check_fits(self, *, num_prompt_tokens: int, num_visual_tokens: int, max_new_tokens: int) -> None:
        """Refuse what can never run.

        Raises:
            ContextLengthError: with the numbers.
        """
        wanted = num_prompt_tokens + max_new_tokens
        asked = (
            f"The prompt has {num_prompt_tokens} tokens, {num_visual_tokens} of them visual, and max_tokens is "
            f"{max_new_tokens}: {wanted} together. "
        )
        advice = " Ask for fewer or smaller frames, a shorter prompt, or fewer max_tokens."
        if wanted > self._context_tokens:
            raise ContextLengthError(f"{asked}The context has room for {self._context_tokens}.{advice}")
        if wanted > self._blocks.capacity_tokens:
            raise ContextLengthError(f"{asked}The KV cache has room for {self._blocks.capacity_tokens}.{advice}")

    def add(self, sequence: Sequence) -> None:
        """Put a sequence that fits at the end of the queue."""
        self._waiting[sequence.id] = sequence

    def admit(self) -> list[Sequence]:
        """Move sequences from the queue's head into the batch, as long as rows and blocks are free."""
        admitted = []
        while self._waiting and len(self._running) < self._max_batch_size:
            sequence = next(iter(self._waiting.values()))
            table = self._blocks.allocate(sequence.num_reserved_tokens)
            if table is None:
                break  # strictly in order: a small one behind it must not starve it
            del self._waiting[sequence.id]
            sequence.table = table
            sequence.phase = Phase.PREFILLING
            self._running[sequence.id] = sequence
            admitted.append(sequence)
        return admitted

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and free its blocks."""
        self._waiting.pop(sequence.id, None)
        self._running.pop(sequence.id, None)
        if sequence.table is not None:
            self._blocks.free(sequence.table)
            sequence.table = None

    def wanted_features(self) -> list[tuple[Sequence, int]]:
        """Sequences whose prefill needs the vision tower before this step, with a bound on visual tokens for each.

        The bounds add up to the step's prompt tokens, so the tower's work of a step is bounded as well.
        """
        starved = [
            sequence
            for sequence in self._prefilling()
            if sequence.num_ready_tokens < sequence.num_prompt_tokens
            and sequence.num_ready_tokens - sequence.num_computed_tokens < self._prefill_chunk_tokens
        ]
        return self._shares({s: s.num_prompt_tokens - s.num_ready_tokens for s in starved})

    def next_step(self) -> list[Chunk]:
        """The step's chunks: one token of each decoding sequence, and prompt tokens within the budget."""
        decoding = [s for s in self._running.values() if s.phase is Phase.DECODING]
        chunks = [Chunk(s, s.num_computed_tokens, 1) for s in decoding]
        ready = {s: s.num_ready_tokens - s.num_computed_tokens for s in self._prefilling()}
        shares = self._shares({s: tokens for s, tokens in ready.items() if tokens > 0})
        return chunks + [Chunk(s, s.num_computed_tokens, tokens) for s, tokens in shares]

    def commit(self, chunk: Chunk) -> None:
        """The chunk's keys and values are in the cache."""
        sequence = chunk.sequence
        sequence.num_computed_tokens = chunk.start + chunk.num_tokens
        if sequence.num_computed_tokens >= sequence.num_prompt_tokens:
            sequence.phase = Phase.DECODING

    def _prefilling(self) -> list[Sequence]:
        return [s for s in self._running.values() if s.phase is Phase.PREFILLING]

    def _shares(self, wanted: dict[Sequence, int]) -> list[tuple[Sequence, int]]:
        """Split a step's prompt tokens: the oldest has its minimum, then those with the least to prefill come first.

        Shortest first gives the least mean time to first token; the oldest's minimum keeps a long video moving.
        """
        if not wanted:
            return []
        budget = self._prefill_chunk_tokens
        oldest = next(iter(wanted))
        shares = {oldest: min(wanted[oldest], budget // OLDEST_SHARE)}
        budget -= shares[oldest]
        for sequence in sorted(wanted, key=lambda s: s.num_uncomputed_prompt_tokens):
            extra = min(wanted[sequence] - shares.get(sequence, 0), budget)
            shares[sequence] = shares.get(sequence, 0) + extra
            budget -= extra
        return [(sequence, tokens) for sequence, tokens in shares.items() if tokens > 0]
