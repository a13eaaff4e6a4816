"""The hf engine: puts scheduler, vision tower, model, sampler and detokenizer together.  Knows no HTTP and no files."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TypeVar

import torch

from tru_vlm.engine.base import (
    EngineDescription,
    EngineEvent,
    EngineRequest,
    EngineStats,
    FailEvent,
    FinishEvent,
    TokenEvent,
)
from tru_vlm.engine.hf.config import EngineConfig
from tru_vlm.engine.hf.decode_attention import check_attend_decode
from tru_vlm.engine.hf.detokenizer import byte_table
from tru_vlm.engine.hf.feature_cache import FeatureCache
from tru_vlm.engine.hf.grammar import Grammars
from tru_vlm.engine.hf.kv_cache import BlockManager, KvCache, KvShape, size_in_tokens
from tru_vlm.engine.hf.loading import (
    AttentionChoice,
    available_memory_bytes,
    checkpoint_quantization,
    choose_attention,
    choose_dtype,
    load_model,
    used_memory_bytes,
)
from tru_vlm.engine.hf.model_runner import ModelRunner
from tru_vlm.engine.hf.quantization import report_weights
from tru_vlm.engine.hf.row import Row, prepare_row
from tru_vlm.engine.hf.sampling import SamplingError, sample
from tru_vlm.engine.hf.scheduler import Chunk, Scheduler
from tru_vlm.engine.hf.side_by_side import SideBySide
from tru_vlm.engine.hf.vision import VisionEncoder
from tru_vlm.engine.warm_up import answer_once
from tru_vlm.errors import InternalError, InvalidRequestError, TruError, UnavailableError
from tru_vlm.processor.profile import ModelProfile, load_profile
from tru_vlm.telemetry.exchange import on_behalf_of
from tru_vlm.types import FinishReason

log = logging.getLogger(__name__)

CPU_NUM_SPECULATIVE_TOKENS = 5
"""Measured there only: on a card every shape of a step is a graph of its own."""

Sampled = int | SamplingError | InvalidRequestError
Item = TypeVar("Item")
Result = TypeVar("Result")


class HfEngine:
    """An :class:`~tru_vlm.engine.base.Engine` on Transformers.  Driven from one thread."""

    def __init__(self, model: Any, profile: ModelProfile, config: EngineConfig) -> None:
        self._profile = profile
        self._config = config
        self._attention = choose_attention(
            config.device,
            use_flash_attn=config.use_flash_attn,
            dtype=choose_dtype(config.dtype, config.device),
        )
        self._vocabulary = int(model.config.text_config.vocab_size)
        self._byte_table = byte_table(profile.tokenizer)
        self._grammars = Grammars(
            profile.tokenizer,
            byte_table=self._byte_table,
            eos_token_ids=profile.eos_token_ids,
            vocabulary=self._vocabulary,
        )
        blocks = _block_manager(model, profile, config)
        shape = _kv_shape(model)
        cache = KvCache(shape, blocks.capacity_tokens + config.block_tokens, config.device)
        # A quantized layer may keep something of the product that it is at: bitsandbytes' does in 8 bits.
        is_quantized = config.quantization != "none" or checkpoint_quantization(model.config) is not None
        self._threads = SideBySide(1 if is_quantized else config.step_threads)
        self._runner = ModelRunner(
            model,
            cache,
            config.device,
            self._attention.kernel,
            block_tokens=config.block_tokens,
            threads=self._threads,
        )
        self._encoder = VisionEncoder(model.model.visual, profile, config.device, self._threads)
        decoding = _prepare_decoding(self._runner, model, config, blocks=blocks, context_tokens=profile.context_tokens)
        self._description = _describe(model, profile, config, attention=self._attention, decoding=decoding)
        _log_choices(self._description)
        self._block_bytes = config.block_tokens * shape.token_bytes
        self._begin(blocks)

    def _begin(self, blocks: BlockManager) -> None:
        """Nobody has asked anything yet, and nothing is cached."""
        config = self._config
        self._features = FeatureCache(self._encoder, config.feature_cache_bytes)
        self._blocks = blocks
        self._scheduler = Scheduler(
            blocks=blocks,
            max_batch_size=config.max_batch_size,
            prefill_chunk_tokens=config.prefill_chunk_tokens,
            context_tokens=self._profile.context_tokens,
        )
        self._rows: dict[str, Row] = {}
        self._pending: list[EngineEvent] = []
        self._num_steps = self._num_prompt_tokens = self._num_generated_tokens = 0
        self._num_computed_prompt_tokens = self._num_draft_tokens = self._num_accepted_draft_tokens = 0

    @classmethod
    def load(cls, config: EngineConfig, on_loaded: Callable[[float], None] = lambda _: None) -> HfEngine:
        """Read the checkpoint and allocate the cache.

        Args:
            config: what to build.
            on_loaded: is told the share of the weights that has been read, 0 to 1.

        Raises:
            ValueError: if the checkpoint is of no known family, or cannot be quantized as asked for.
            OSError: if its weights cannot be read.
        """
        profile = load_profile(config.model_path, max_context_tokens=config.max_context_tokens)
        return cls(load_model(profile, config, on_loaded), profile, config)

    @property
    def description(self) -> EngineDescription:
        """What was loaded."""
        return self._description

    @property
    def profile(self) -> ModelProfile:
        """The checkpoint's tokenizer, ids and sizes."""
        return self._profile

    def warm_up(self) -> None:
        """Answer a question about made-up frames, and forget it.

        Raises:
            InternalError: if it cannot be answered.
        """
        answer_once(self, self._profile)
        self._begin(BlockManager(self._blocks.num_blocks, self._blocks.block_tokens))

    def submit(self, request: EngineRequest) -> None:
        """Tokenize a request and queue it.

        Raises:
            ContextLengthError: if it can never fit.
            InvalidRequestError: if its messages and media do not belong together, its JSON schema cannot be followed, a
                token that it names does not exist, or its id is in use.
            InternalError: if it cannot be prepared for any other reason.
        """
        if request.id in self._rows:
            raise InvalidRequestError(f"The request id {request.id} is in use.", param="id")
        started = time.perf_counter()
        try:
            row = prepare_row(
                request,
                profile=self._profile,
                byte_table=self._byte_table,
                grammars=self._grammars,
                vocabulary=self._vocabulary,
                device=self._config.device,
                shared_block_tokens=self._config.block_tokens if self._config.prefix_cache else None,
                max_draft_tokens=_max_draft_tokens(self._config),
            )
        except TruError:
            raise
        except Exception as error:
            log.exception("request %s could not be prepared", request.id)
            raise InternalError from error
        self._scheduler.check_fits(
            num_prompt_tokens=row.prompt.num_tokens,
            num_visual_tokens=row.prompt.num_visual_tokens,
            max_new_tokens=request.generation.max_tokens,
        )
        row.clock.queued = time.perf_counter()
        row.clock.preparation_seconds = row.clock.queued - started
        self._rows[request.id] = row
        self._scheduler.add(row.sequence)

    def abort(self, request_id: str) -> None:
        """Stop a request wherever it is; its memory is free when this returns."""
        row = self._rows.get(request_id)
        if row is not None:
            self._pending.append(self._finish(row, "abort"))

    def has_work(self) -> bool:
        """Whether :meth:`step` would do anything."""
        return bool(self._rows or self._pending)

    @torch.inference_mode()
    def step(self) -> list[EngineEvent]:
        """Admit, run the vision tower where frames wait for it, run the model once, and tell what happened."""
        events, self._pending = self._pending, []
        self._admit()
        self._encode(events)
        for sequence in self._scheduler.decoding():
            self._rows[sequence.id].look_ahead()
        chunks = self._scheduler.next_step()
        if chunks:
            self._num_steps += 1
            self._advance(chunks, events)
        return events

    def stats(self) -> EngineStats:
        """Counters and gauges; cheap."""
        return EngineStats(
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            kv_cache_tokens=self._blocks.capacity_tokens,
            kv_cache_used_tokens=self._scheduler.num_used_tokens,
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
            device_memory_bytes=used_memory_bytes(self._config.device),
            num_computed_prompt_tokens=self._num_computed_prompt_tokens,
            num_draft_tokens=self._num_draft_tokens,
            num_accepted_draft_tokens=self._num_accepted_draft_tokens,
            prefix_cache_queries=self._scheduler.num_prefix_queries,
            prefix_cache_hits=self._scheduler.num_prefix_hits,
            prefix_cache_bytes=self._blocks.num_cached_blocks * self._block_bytes,
            prefix_cache_evictions=self._blocks.num_evictions,
            mm_cache_queries=self._features.num_queries,
            mm_cache_hits=self._features.num_hits,
            mm_cache_bytes=self._features.used_bytes,
            mm_cache_evictions=self._features.num_evictions,
        )

    def close(self) -> None:
        """Forget everything and give the device's memory back; the engine cannot be used afterwards."""
        self._rows.clear()
        self._pending.clear()
        self._threads.close()
        del self._runner, self._features, self._encoder
        _release_memory(self._config.device)

    def _admit(self) -> None:
        """Let new sequences in; the older ones first take over what they share, so that it is not evicted for them."""
        for sequence in self._scheduler.catch_up():
            self._rows[sequence.id].skip_computed()
        now = time.perf_counter()
        for sequence in self._scheduler.admit():
            row = self._rows[sequence.id]
            row.clock.admitted = now
            row.skip_computed()
            self._num_prompt_tokens += row.prompt.num_tokens

    def _encode(self, events: list[EngineEvent]) -> None:
        """Run the vision tower for the prefills of this step."""
        for sequence, max_tokens in self._scheduler.wanted_features():
            row = self._rows[sequence.id]
            started = time.perf_counter()
            try:
                row.visual.encode_next(self._features, max_tokens)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this row's
                events.append(self._fail(row, error))
                continue
            row.clock.vision_seconds += time.perf_counter() - started
            sequence.num_ready_tokens = row.visual.ready_tokens

    def _advance(self, chunks: list[Chunk], events: list[EngineEvent]) -> None:
        """Run the model on the chunks, and end or continue each of their rows."""
        results = self._isolated(chunks, self._compute)
        for chunk, result in zip(chunks, results, strict=True):
            row = self._rows[chunk.sequence.id]
            if isinstance(result, Exception):
                events.append(self._fail(row, result))
                continue
            self._go_on(row, chunk, result, events)

    def _compute(self, chunks: list[Chunk]) -> list[list[Sampled]]:
        """What was sampled for each chunk's row: a token behind its newest one and behind each of its draft's; nothing
        where the prompt goes on.
        """
        rows = [self._rows[chunk.sequence.id] for chunk in chunks]
        inputs = [row.model_input(chunk) for row, chunk in zip(rows, chunks, strict=True)]
        logits = self._runner.run(inputs)
        if logits is None:
            return [[] for _ in chunks]
        samplers = [row.sampler for row, given in zip(rows, inputs, strict=True) for _ in range(given.num_logits)]
        tokens = iter(sample(logits, samplers))
        return [[*itertools.islice(tokens, given.num_logits)] for given in inputs]

    def _isolated(self, items: list[Item], run: Callable[[list[Item]], list[Result]]) -> list[Result | Exception]:
        """Run all items at once; if that fails, one by one, so that only the offender has the error."""
        try:
            return [*run(items)]
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not reach the neighbours
            if len(items) == 1:
                return [error]
        _release_memory(self._config.device)  # here the error, and with it what it kept alive, is gone
        return [result for item in items for result in self._isolated([item], run)]

    def _go_on(self, row: Row, chunk: Chunk, sampled: list[Sampled], events: list[EngineEvent]) -> None:
        """A row's prompt or answer goes on with a chunk and what was sampled behind it; the answer may end."""
        if chunk.start < row.prompt.num_tokens:
            row.visual.advance_to(chunk.start + chunk.num_tokens)
            self._num_computed_prompt_tokens += chunk.num_tokens
            num_right = 0
        else:
            num_right = row.check_draft(sampled)
        text, num_tokens, reason = "", 0, None
        try:
            for token in sampled[: num_right + 1]:
                more, reason = self._accept(row, token)
                text += more
                num_tokens += 1
                if reason:
                    break
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this row's
            events.append(self._fail(row, error))
            return
        # Each accepted token but the last was the draft's, so its keys and values are in the cache as well.
        self._scheduler.commit(chunk, chunk.num_tokens - len(row.draft) + max(0, num_tokens - 1))
        self._num_draft_tokens += len(row.draft)
        self._num_accepted_draft_tokens += min(num_right, num_tokens)
        if num_tokens:
            events.append(TokenEvent(row.request.id, text, num_tokens))
        if reason:
            events.append(self._finish(row, reason))

    def _accept(self, row: Row, token: Sampled) -> tuple[str, FinishReason | None]:
        """The answer goes on with a token: text that has become certain, and why the answer ends, if it does.

        Raises:
            SamplingError: if there is no token.
            InvalidRequestError: if the row's grammar cannot be followed.
        """
        if isinstance(token, Exception):
            raise token
        params = row.request.generation
        ends = token in self._profile.eos_token_ids and not params.ignore_eos
        text = "" if ends else row.text.add(token)
        row.sampler.accept(token)
        row.add_token(token)
        self._num_generated_tokens += 1
        if row.clock.first_token is None:
            row.clock.first_token = time.perf_counter()
        reason: FinishReason | None = None
        if ends or row.text.stopped or row.sampler.is_complete:
            reason = "stop"
        elif row.num_generated >= params.max_tokens:
            reason = "length"
        return text + row.text.flush() if reason else text, reason

    def _finish(self, row: Row, reason: FinishReason) -> FinishEvent:
        del self._rows[row.request.id]
        self._scheduler.remove(row.sequence)
        return FinishEvent(row.request.id, reason, row.usage, row.clock.timings())

    def _fail(self, row: Row, error: Exception) -> FailEvent:
        del self._rows[row.request.id]
        # Whatever it was, it may have come from what is cached, or have spoilt it: a retry must not meet it again.
        self._scheduler.remove(row.sequence, discard=True)
        for media in row.request.media:
            self._features.discard(media)
        with on_behalf_of(row.request.origin):
            log.error("request %s failed", row.request.id, exc_info=error)
        return FailEvent(row.request.id, _as_answer(error).info())


def _as_answer(error: Exception) -> TruError:
    """What a client is told about an error."""
    if isinstance(error, TruError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return UnavailableError(
            "The device's memory does not suffice for this request; ask for fewer or smaller frames.",
            code="out_of_memory",
        )
    return InternalError()


def _release_memory(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def _kv_shape(model: Any) -> KvShape:
    text = model.config.text_config
    return KvShape(
        num_layers=text.num_hidden_layers,
        num_kv_heads=text.num_key_value_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        dtype=model.model.language_model.embed_tokens.weight.dtype,
    )


def _block_manager(model: Any, profile: ModelProfile, config: EngineConfig) -> BlockManager:
    tokens = size_in_tokens(
        requested_tokens=config.kv_cache_tokens,
        most_useful_tokens=profile.context_tokens * config.max_batch_size,
        token_bytes=_kv_shape(model).token_bytes,
        free_memory_bytes=max(0, available_memory_bytes(config.device) - config.feature_cache_bytes),
        is_cuda=torch.device(config.device).type == "cuda",
        block_tokens=config.block_tokens,
    )
    return BlockManager(tokens // config.block_tokens, config.block_tokens)


def _max_draft_tokens(config: EngineConfig) -> int:
    if config.num_speculative_tokens is not None:
        return config.num_speculative_tokens
    return 0 if torch.device(config.device).type == "cuda" else CPU_NUM_SPECULATIVE_TOKENS


def _prepare_decoding(
    runner: ModelRunner, model: Any, config: EngineConfig, *, blocks: BlockManager, context_tokens: int
) -> str:
    """Choose how decode steps run; returns it as a sentence, for health."""
    is_cuda = torch.device(config.device).type == "cuda"
    if not (is_cuda if config.batched_decode is None else config.batched_decode):
        return "row by row, which is fastest on this device" if not is_cuda else "row by row, as configured"
    steps = runner.decode_in_batches(
        max_step_tokens=config.max_batch_size * (1 + _max_draft_tokens(config)),
        max_sequence_tokens=context_tokens,
        spare_block=blocks.num_blocks,
    )
    if not is_cuda:
        return "all rows at once"
    try:
        text = model.config.text_config
        check_attend_decode(text.num_attention_heads, _kv_shape(model), config.block_tokens, config.device)
        if not config.cuda_graphs:
            return "all rows at once; CUDA_GRAPHS=false"
        steps.capture()
    except Exception as error:
        log.exception("decode steps stay row by row, which is slower")
        runner.decode_row_by_row()
        _release_memory(config.device)
        return f"row by row: {error}"
    return f"CUDA graphs for {', '.join(map(str, steps.sizes))} rows"


def _describe(
    model: Any, profile: ModelProfile, config: EngineConfig, *, attention: AttentionChoice, decoding: str
) -> EngineDescription:
    dtype = choose_dtype(config.dtype, config.device)
    weights = report_weights(model, dtype)
    own = checkpoint_quantization(model.config)
    return EngineDescription(
        backend="hf",
        model_path=profile.model_path,
        model_type=profile.model_type,
        device=config.device,
        dtype=str(dtype).removeprefix("torch."),
        attention=attention.kernel,
        attention_reason=attention.reason,
        decoding=decoding,
        quantization=f"{own} (the checkpoint's own)" if own else config.quantization,
        num_parameters=weights.num_parameters,
        full_weight_bytes=weights.full_bytes,
        weight_bytes=weights.bytes,
        context_tokens=profile.context_tokens,
        versions={name: version(name) for name in ("torch", "transformers")},
    )


def _log_choices(chosen: EngineDescription) -> None:
    log.info("attention: %s, because %s", chosen.attention, chosen.attention_reason)
    log.info("decode steps: %s", chosen.decoding)
    log.info(
        "weights: %s, quantization %s, %.1f MiB (unquantized %.1f MiB)",
        chosen.dtype,
        chosen.quantization,
        chosen.weight_bytes / 2**20,
        chosen.full_weight_bytes / 2**20,
    )
