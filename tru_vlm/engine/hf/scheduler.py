"""Decides who runs in a step, and how much of each prompt.  This scheduler never sees a tensor, a token or a clock.

Waiting sequences are admitted first come, first served, once a row and blocks for their prompt *and* their whole
answer are free: nothing is ever taken back from a running sequence.  Every decoding sequence runs in every step; a
bounded number of prompt tokens rides along, so that long prompts do not stall running answers.

A sequence whose next block an older one is about to compute waits for it: computing it twice would make both later.
It never waits for an answer, only for a prefill that is under way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from tru_vlm.engine.fit import check_fits
from tru_vlm.engine.hf.kv_cache import BlockManager, BlockTable

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
        keys: of its full blocks, by content; the prompt's, then the answer's as it grows.  Empty: nothing is shared.
        num_cached_tokens: prompt tokens that it did not have to compute.
        num_draft_tokens: while decoding: draft tokens behind its newest one, for the next step to check.
        table: its blocks, once admitted.
    """

    id: str
    num_prompt_tokens: int
    max_new_tokens: int
    num_ready_tokens: int
    num_computed_tokens: int = 0
    phase: Phase = Phase.WAITING
    keys: list[bytes] = field(default_factory=list)
    num_cached_tokens: int = 0
    num_draft_tokens: int = 0
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
    """Holds all sequences from submission to their end.

    Attributes:
        num_prefix_queries, num_prefix_hits: prompt tokens of sequences with keys, and those that were not computed.
    """

    def __init__(
        self, *, blocks: BlockManager, max_batch_size: int, prefill_chunk_tokens: int, context_tokens: int
    ) -> None:
        self._blocks = blocks
        self._max_batch_size = max_batch_size
        self._prefill_chunk_tokens = prefill_chunk_tokens
        self._context_tokens = context_tokens
        self._waiting: dict[str, Sequence] = {}
        self._running: dict[str, Sequence] = {}
        self._promised: dict[bytes, Sequence] = {}  # by key: who is going to compute a block
        self.num_prefix_queries = self.num_prefix_hits = 0

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
        """Tokens of the cache that running sequences hold, shared ones counted once."""
        return (self._blocks.num_blocks - self._blocks.num_free_blocks) * self._blocks.block_tokens

    def check_fits(self, *, num_prompt_tokens: int, num_visual_tokens: int, max_new_tokens: int) -> None:
        """Refuse what can never run.

        Raises:
            ContextLengthError: with the numbers.
        """
        check_fits(
            num_prompt_tokens=num_prompt_tokens,
            num_visual_tokens=num_visual_tokens,
            max_new_tokens=max_new_tokens,
            context_tokens=self._context_tokens,
            kv_cache_tokens=self._blocks.capacity_tokens,
        )

    def add(self, sequence: Sequence) -> None:
        """Put a sequence that fits at the end of the queue."""
        self._waiting[sequence.id] = sequence

    def admit(self) -> list[Sequence]:
        """Move sequences from the queue's head into the batch, as long as rows and blocks are free.

        Their ``num_computed_tokens`` counts what is in the cache already.
        """
        admitted = []
        while self._waiting and len(self._running) < self._max_batch_size:
            sequence = next(iter(self._waiting.values()))
            table = self._blocks.allocate(sequence.num_reserved_tokens, self._reusable_keys(sequence))
            if table is None:
                break  # strictly in order: a small one behind it must not starve it
            del self._waiting[sequence.id]
            sequence.phase = Phase.PREFILLING
            self._running[sequence.id] = sequence
            if sequence.keys:
                self.num_prefix_queries += sequence.num_prompt_tokens
            self._take_over(sequence, table)
            self._promise(sequence)
            admitted.append(sequence)
        return admitted

    def catch_up(self) -> list[Sequence]:
        """Let prefilling sequences take over what others have computed since; returns those that moved."""
        moved = []
        for sequence in self._prefilling():
            assert sequence.table is not None  # noqa: S101 - it is admitted
            if sequence.num_computed_tokens % self._blocks.block_tokens:
                continue  # within a block of its own
            table = self._blocks.adopt(
                sequence.table,
                self._reusable_keys(sequence),
                num_computed_blocks=sequence.num_computed_tokens // self._blocks.block_tokens,
            )
            if table is not None:
                self._take_over(sequence, table)
                moved.append(sequence)
        return moved

    def remove(self, sequence: Sequence, *, discard: bool = False) -> None:
        """Forget a sequence, wherever it is, and free its blocks.

        Args:
            sequence: the one.
            discard: its content is not to be trusted, and not to be found again.
        """
        self._waiting.pop(sequence.id, None)
        self._running.pop(sequence.id, None)
        if sequence.table is not None:
            if discard:
                self._blocks.discard(sequence.table)
            self._blocks.free(sequence.table)
            sequence.table = None
            self._pass_promises_on(sequence)

    def wanted_features(self) -> list[tuple[Sequence, int]]:
        """Sequences whose prefill needs the vision tower before this step, with a bound on visual tokens for each.

        The bounds add up to the step's prompt tokens, so the tower's work of a step is bounded as well.
        """
        starved = [
            sequence
            for sequence in self._prefilling()
            if not self._is_awaiting(sequence)
            and sequence.num_ready_tokens < sequence.num_prompt_tokens
            and sequence.num_ready_tokens - sequence.num_computed_tokens < self._prefill_chunk_tokens
        ]
        return self._shares({s: s.num_prompt_tokens - s.num_ready_tokens for s in starved})

    def next_step(self) -> list[Chunk]:
        """The step's chunks: the newest token of each decoding sequence with the draft behind it, and prompt
        tokens within the budget.
        """
        chunks = [Chunk(s, s.num_computed_tokens, 1 + s.num_draft_tokens) for s in self.decoding()]
        active = [s for s in self._prefilling() if not self._is_awaiting(s)]
        ready = {s: s.num_ready_tokens - s.num_computed_tokens for s in active}
        shares = self._shares({s: tokens for s, tokens in ready.items() if tokens > 0})
        return chunks + [Chunk(s, s.num_computed_tokens, tokens) for s, tokens in shares]

    def decoding(self) -> list[Sequence]:
        """The sequences whose prompt is computed."""
        return [s for s in self._running.values() if s.phase is Phase.DECODING]

    def commit(self, chunk: Chunk, num_tokens: int) -> None:
        """Keys and values are in the cache; blocks that became full can be shared from now on.

        Args:
            chunk: the step's.
            num_tokens: its first tokens that count; the others were a draft, and wrong.
        """
        sequence, size = chunk.sequence, self._blocks.block_tokens
        assert sequence.table is not None  # noqa: S101 - only admitted sequences have chunks
        sequence.num_computed_tokens = chunk.start + num_tokens
        start, stop = chunk.start // size, sequence.num_computed_tokens // size
        self._blocks.publish(sequence.table, sequence.keys, start=start, stop=stop)
        self._fulfil(sequence, start, stop)
        if sequence.num_computed_tokens >= sequence.num_prompt_tokens:
            sequence.phase = Phase.DECODING

    def _prefilling(self) -> list[Sequence]:
        return [s for s in self._running.values() if s.phase is Phase.PREFILLING]

    def _num_reusable(self, sequence: Sequence) -> int:
        """The prompt's blocks that may come from others: its last token is always computed, for the answer's first."""
        return min(len(sequence.keys), (sequence.num_prompt_tokens - 1) // self._blocks.block_tokens)

    def _reusable_keys(self, sequence: Sequence) -> list[bytes]:
        return sequence.keys[: self._num_reusable(sequence)]

    def _take_over(self, sequence: Sequence, table: BlockTable) -> None:
        """The sequence goes on behind the table's cached tokens."""
        num_new = table.num_cached_tokens - sequence.num_computed_tokens
        start = sequence.num_computed_tokens // self._blocks.block_tokens
        sequence.table = table
        sequence.num_computed_tokens += num_new
        sequence.num_cached_tokens += num_new
        self.num_prefix_hits += num_new
        self._fulfil(sequence, start, sequence.num_computed_tokens // self._blocks.block_tokens)

    def _uncomputed_keys(self, sequence: Sequence) -> list[bytes]:
        return self._reusable_keys(sequence)[sequence.num_computed_tokens // self._blocks.block_tokens :]

    def _promise(self, sequence: Sequence) -> None:
        """The sequence is going to compute what nobody else is."""
        for key in self._uncomputed_keys(sequence):
            self._promised.setdefault(key, sequence)

    def _fulfil(self, sequence: Sequence, start: int, stop: int) -> None:
        """The sequence is past its blocks from start up to stop: nobody waits for it to compute them."""
        for key in sequence.keys[start:stop]:
            self._promised.pop(key, None)

    def _pass_promises_on(self, sequence: Sequence) -> None:
        """The sequence computes nothing more: those that waited for it divide its promises among themselves."""
        broken = [key for key in self._uncomputed_keys(sequence) if self._promised.get(key) is sequence]
        for key in broken:
            del self._promised[key]
        if broken:
            for other in self._prefilling():
                self._promise(other)

    def _is_awaiting(self, sequence: Sequence) -> bool:
        """Whether another sequence is about to compute this one's next block.

        They cannot wait for each other: equal keys mean equal beginnings, so each would have to be behind the other.
        """
        index, within = divmod(sequence.num_computed_tokens, self._blocks.block_tokens)
        if within or index >= self._num_reusable(sequence):
            return False
        return self._promised.get(sequence.keys[index], sequence) is not sequence

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
