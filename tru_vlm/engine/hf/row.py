"""A request inside the engine: its prompt, its media, its answer so far.  Knows no other request and no policy."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tru_vlm.engine.base import EngineRequest, EngineTimings
from tru_vlm.engine.fit import check_token_ids
from tru_vlm.engine.hf.block_chain import BlockChain
from tru_vlm.engine.hf.detokenizer import TextStream
from tru_vlm.engine.hf.grammar import Grammars
from tru_vlm.engine.hf.model_runner import RowInput
from tru_vlm.engine.hf.sampling import RowSampler
from tru_vlm.engine.hf.scheduler import Chunk, Sequence
from tru_vlm.engine.hf.vision import VisualInputs
from tru_vlm.engine.prompt_lookup import PromptLookup
from tru_vlm.processor.positions import mrope_positions
from tru_vlm.processor.profile import ModelProfile
from tru_vlm.processor.prompt import Prompt, build_prompt
from tru_vlm.types import GenerationParams, Usage


@dataclass(slots=True, eq=False)
class RowClock:
    """When things happened (``perf_counter`` seconds), and how long the request's own preparation took."""

    queued: float = 0.0
    admitted: float | None = None
    first_token: float | None = None
    preparation_seconds: float = 0.0
    vision_seconds: float = 0.0

    def timings(self) -> EngineTimings:
        """Stages up to the first token; of a request that got no first token, those that it reached."""
        now = time.perf_counter()
        admitted = self.admitted if self.admitted is not None else now
        first_token = self.first_token if self.first_token is not None else now
        return EngineTimings(
            queue=admitted - self.queued,
            preprocess=self.preparation_seconds + self.vision_seconds,
            prefill=max(0.0, first_token - admitted - self.vision_seconds),
        )


@dataclass(slots=True, eq=False)
class Row:
    """Everything about one request but the tensors in the cache.

    Attributes:
        positions: mrope positions of the prompt; int64, (3, N).
        rope_delta: a later token's position is its index plus this.
        is_visual: bool, (N,).
        chain: names its blocks by their content; None when nothing is to be shared.
        lookup: drafts its next tokens; None where nothing is drafted, or a token's rules depend on those before it.
        last_token: the newest token of the answer, not yet in the cache.
        draft: what may follow it, to be checked by the next step.
        num_generated: tokens of the answer.
    """

    request: EngineRequest
    prompt: Prompt
    positions: NDArray[np.int64]
    rope_delta: int
    is_visual: NDArray[np.bool_]
    sequence: Sequence
    visual: VisualInputs
    chain: BlockChain | None
    sampler: RowSampler
    text: TextStream
    clock: RowClock
    lookup: PromptLookup | None
    last_token: int = -1
    draft: list[int] = field(default_factory=list)
    num_generated: int = 0

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(
            self.prompt.num_tokens,
            self.prompt.num_visual_tokens,
            self.num_generated,
            cached_tokens=self.sequence.num_cached_tokens,
        )

    def add_token(self, token: int) -> None:
        """The answer goes on."""
        self.last_token = token
        self.num_generated += 1
        if self.chain is not None:
            self.chain.append(token)
        if self.lookup is not None:
            self.lookup.add(token)

    def look_ahead(self) -> None:
        """Draft what the next step is to check: no more than the answer may still have behind its next token."""
        if self.lookup is not None:
            self.draft = self.lookup.draft(self.request.generation.max_tokens - self.num_generated - 1)
            self.sequence.num_draft_tokens = len(self.draft)

    def check_draft(self, sampled: list[Any]) -> int:
        """How many of the draft's first tokens were sampled as well.

        Args:
            sampled: what follows the newest token and each of the draft's.
        """
        pairs = enumerate(zip(self.draft, sampled, strict=False))
        num_right = next((place for place, (drafted, token) in pairs if drafted != token), len(self.draft))
        if self.lookup is not None and self.draft:
            self.lookup.learn(len(self.draft), num_right)
        return num_right

    def skip_computed(self) -> None:
        """Ask for no features of tokens that are in the cache."""
        self.visual.advance_to(self.sequence.num_computed_tokens)
        self.sequence.num_ready_tokens = self.visual.ready_tokens

    def model_input(self, chunk: Chunk) -> RowInput:
        """What the model needs for a chunk."""
        table = self.sequence.table
        assert table is not None  # noqa: S101 - only admitted sequences have chunks
        if chunk.start >= self.prompt.num_tokens:
            position = chunk.start + self.rope_delta
            tokens = (self.last_token, *self.draft)
            return RowInput(tokens, position, len(tokens), chunk.start, table, num_logits=len(tokens))
        part = slice(chunk.start, chunk.start + chunk.num_tokens)
        visual = np.flatnonzero(self.is_visual[part])
        return RowInput(
            token_ids=self.prompt.token_ids[part],
            positions=self.positions[:, part],
            num_tokens=chunk.num_tokens,
            num_cached_tokens=chunk.start,
            table=table,
            num_logits=int(chunk.samples),
            visual_indices=visual if len(visual) else None,
            features=self.visual.peek(len(visual)),
        )


def prepare_row(
    request: EngineRequest,
    *,
    profile: ModelProfile,
    byte_table: list[bytes],
    grammars: Grammars,
    vocabulary: int,
    device: str,
    shared_block_tokens: int | None,
    max_draft_tokens: int,
) -> Row:
    """Tokenize a request and lay out its media; nothing is computed yet.

    Args:
        request: the request.
        profile: the model.
        byte_table: of its tokenizer.
        grammars: of what an answer must satisfy.
        vocabulary: width of its logits.
        device: where its sampler's state is.
        shared_block_tokens: tokens in a block of the KV cache; None when blocks are not shared.
        max_draft_tokens: most tokens of a draft.

    Raises:
        InvalidRequestError: if messages and media do not belong together, the JSON schema cannot be followed, or there
            is no such token as the bias names.
        ValueError: if a frame's size does not fit the model.
    """
    prompt = build_prompt(profile, request.messages, [media.layout for media in request.media])
    positions, rope_delta = mrope_positions(
        prompt.num_tokens, prompt.spans, spatial_merge_size=profile.spatial_merge_size
    )
    visual = VisualInputs(request.media, prompt)
    chain = None
    if shared_block_tokens:
        chain = BlockChain(prompt, request.media, shared_block_tokens, salt=request.cache_salt)
    params = request.generation
    check_token_ids((token for token, _ in params.logit_bias), vocabulary=vocabulary, param="logit_bias")
    grammar = None if params.json_schema is None else grammars.start(params.json_schema)
    is_visual = prompt.mm_token_type_ids() != 0
    sequence = Sequence(request.id, prompt.num_tokens, params.max_tokens, visual.ready_tokens)
    if chain is not None:
        sequence.keys = chain.keys  # the same list: it grows with the answer
    return Row(
        request=request,
        prompt=prompt,
        positions=positions,
        rope_delta=rope_delta,
        is_visual=is_visual,
        sequence=sequence,
        visual=visual,
        chain=chain,
        sampler=RowSampler.create(params, prompt.token_ids, vocabulary=vocabulary, device=device, grammar=grammar),
        text=TextStream(byte_table, params.stop),
        clock=RowClock(),
        lookup=_lookup(params, prompt.token_ids[~is_visual], max_draft_tokens),
    )


def _lookup(params: GenerationParams, text_ids: NDArray[np.int64], max_draft_tokens: int) -> PromptLookup | None:
    depends = params.json_schema or params.repetition_penalty != 1.0
    if depends or params.presence_penalty or params.frequency_penalty or not max_draft_tokens:
        return None
    return PromptLookup(text_ids.tolist(), max_draft_tokens)
