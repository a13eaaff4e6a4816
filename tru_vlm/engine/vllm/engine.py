"""The vllm engine: our prompts and frames in, vLLM's tokens out.  Knows no HTTP and no files."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing.resource_tracker
import multiprocessing.util
import time
import uuid
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from tru_vlm.engine.base import (
    EngineDescription,
    EngineEvent,
    EngineRequest,
    EngineStats,
    EngineTimings,
    FailEvent,
    FinishEvent,
    TokenEvent,
)
from tru_vlm.engine.fit import check_fits, check_token_ids
from tru_vlm.engine.vllm.config import VllmConfig, check_names, engine_arguments
from tru_vlm.engine.vllm.environment import binds_threads, guarded_children, prepare_environment
from tru_vlm.engine.vllm.guardian import Guardian
from tru_vlm.engine.vllm.installed import vllm_version
from tru_vlm.engine.vllm.media import items_of
from tru_vlm.engine.vllm.runner import EngineLostError, Job, Output, Runner
from tru_vlm.engine.vllm.sampling import check_draftable, check_schema, sampling_params
from tru_vlm.engine.vllm.stats import HostMemory, StatsRecorder
from tru_vlm.engine.vllm.weights import num_parameters
from tru_vlm.engine.warm_up import answer_once
from tru_vlm.errors import InternalError, InvalidRequestError, TruError
from tru_vlm.processor.profile import ModelProfile, load_profile
from tru_vlm.processor.prompt import build_prompt
from tru_vlm.telemetry.exchange import on_behalf_of
from tru_vlm.types import FinishReason, Usage

log = logging.getLogger(__name__)

STEP_SECONDS = 0.02
"""How long a step waits for something to happen: as long may an abort or a new request wait for its turn."""

BLOCK_TOKENS = {"cpu": 32, "cuda": 16}
"""Tokens in a block of the KV cache: the least that vLLM's kernels are made for."""

_BEFORE_CHILDREN_ARE_JOINED = 10

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class VllmEngine:
    """An :class:`~tru_vlm.engine.base.Engine` on vLLM.  Driven from one thread."""

    def __init__(self, runner: Runner, profile: ModelProfile, config: VllmConfig, recorder: StatsRecorder) -> None:
        self._runner = runner
        self._profile = profile
        self._config = config
        self._recorder = recorder
        self._vllm_config = runner.llm.vllm_config
        if not self._vllm_config.model_config.multimodal_config.mm_device_do_normalize:
            raise ValueError(
                "MODEL_BACKEND=vllm: this vLLM does not normalise pixels itself (VLLM_USE_RUST_FRONTEND?)."
            )
        cache = self._vllm_config.cache_config
        # One block is vLLM's own, for what it masks.  Its longest sequence is the model's, or what fits the cache.
        blocks_tokens = int((cache.num_gpu_blocks - 1) * cache.block_size)
        longest = int(self._vllm_config.model_config.max_model_len)
        self._kv_cache_tokens = blocks_tokens if longest >= profile.context_tokens else min(blocks_tokens, longest)
        self._memory_bytes = _memory(config)
        self._description = self._describe()
        self._jobs: dict[str, Job] = {}
        self._pending: list[EngineEvent] = []
        self._guardian: Guardian | None = None
        self._at_exit: multiprocessing.util.Finalize | None = None
        self._is_closed = False

    @classmethod
    def load(cls, config: VllmConfig, devices: Sequence[str] = ("cpu",)) -> VllmEngine:
        """Start vLLM, with its processes, on the checkpoint.

        Args:
            config: what to build.
            devices: the cards that it may use, or ``["cpu"]``.

        Raises:
            ValueError: if vLLM is not installed, or cannot do what was asked for; the text names the setting.
        """
        vllm_version()
        profile = load_profile(config.model_path, max_context_tokens=config.max_context_tokens)
        arguments = engine_arguments(
            config,
            resolved_path=profile.resolved_path,
            block_tokens=BLOCK_TOKENS[config.device],
            binds_threads=binds_threads(),
        )
        prepare_environment(devices, num_threads=config.num_threads)
        multiprocessing.resource_tracker.ensure_running()  # it is this process's own: it must not bear the mark
        recorder = StatsRecorder()
        with guarded_children(uuid.uuid4().hex) as guardian:
            runner = Runner(_maker(arguments, config, recorder), profile)
            try:
                engine = cls(runner, profile, config, recorder)
            except BaseException:
                runner.close()
                raise
        engine._guardian = guardian
        # However the worker ends: multiprocessing waits for children at exit, and vLLM's end only when they are told.
        engine._at_exit = multiprocessing.util.Finalize(None, engine.close, exitpriority=_BEFORE_CHILDREN_ARE_JOINED)
        return engine

    @property
    def description(self) -> EngineDescription:
        """What was loaded."""
        return self._description

    @property
    def profile(self) -> ModelProfile:
        """The checkpoint's tokenizer, ids and sizes."""
        return self._profile

    def warm_up(self) -> None:
        """Answer a question about made-up frames, and forget it; vLLM's own warm-up has no frames on a CPU.

        Raises:
            InternalError: if it cannot be answered.
            EngineLostError: if vLLM has died of it.
        """
        answer_once(self, self._profile)
        self._runner.forget_caches()
        self._recorder.begin()

    def submit(self, request: EngineRequest) -> None:
        """Tokenize a request and hand it to vLLM.

        Raises:
            ContextLengthError: if it can never fit.
            InvalidRequestError: if its messages and media do not belong together, its JSON schema cannot be followed, a
                token that it names does not exist, vLLM cannot draft under its rules, or its id is in use.
            InternalError: if it cannot be prepared for any other reason.
        """
        if request.id in self._jobs:
            raise InvalidRequestError(f"The request id {request.id} is in use.", param="id")
        try:
            job = self._prepare(request)
        except TruError:
            raise
        except Exception as error:
            log.exception("request %s could not be prepared", request.id)
            raise as_answer(error) from error
        self._jobs[request.id] = job
        self._recorder.is_counting = True
        self._runner.start(job)

    def abort(self, request_id: str) -> None:
        """Stop a request wherever it is."""
        job = self._jobs.get(request_id)
        if job is not None:
            self._runner.cancel(job)
            self._pending.append(self._finish(job, "abort"))

    def has_work(self) -> bool:
        """Whether :meth:`step` would do anything; also when vLLM has died, which the next step tells."""
        return bool(self._jobs or self._pending or self._runner.is_lost)

    def step(self) -> list[EngineEvent]:
        """What has happened; where nothing has yet, what happens within :data:`STEP_SECONDS`.

        Raises:
            EngineLostError: if vLLM has died.
        """
        events, self._pending = self._pending, []
        wait = STEP_SECONDS if self._jobs and not events else 0.0
        for output in self._runner.outputs(wait):
            if self._jobs.get(output.job.request.id) is output.job:  # else it was aborted meanwhile
                events += self._events_of(output)
        return events

    def stats(self) -> EngineStats:
        """Counters and gauges; cheap."""
        recorder, num_open = self._recorder, len(self._jobs)
        # vLLM tells of an iteration a moment later: what has left here does not run, whatever it told last.
        num_running = min(recorder.num_running, num_open)
        return EngineStats(
            num_running=num_running,
            num_waiting=num_open - num_running,
            kv_cache_tokens=self._kv_cache_tokens,
            kv_cache_used_tokens=round(recorder.kv_cache_usage * self._kv_cache_tokens) if num_open else 0,
            num_steps=recorder.num_steps,
            num_prompt_tokens=recorder.num_prompt_tokens,
            num_generated_tokens=recorder.num_generated_tokens,
            device_memory_bytes=self._memory_bytes(),
            num_computed_prompt_tokens=recorder.num_computed_prompt_tokens,
            num_draft_tokens=recorder.num_draft_tokens,
            num_accepted_draft_tokens=recorder.num_accepted_draft_tokens,
            prefix_cache_queries=recorder.prefix_cache_queries,
            prefix_cache_hits=recorder.prefix_cache_hits,
            mm_cache_queries=self._runner.mm_cache_queries,
            mm_cache_hits=self._runner.mm_cache_hits,
        )

    def close(self) -> None:
        """Forget everything and end vLLM's processes; the engine cannot be used afterwards."""
        if self._is_closed:
            return
        self._is_closed = True
        self._jobs.clear()
        self._pending.clear()
        if self._at_exit is not None:
            self._at_exit.cancel()
        self._runner.close()
        if self._guardian is not None and self._guardian.close():
            log.error("vLLM has left processes behind; they were killed")

    def _prepare(self, request: EngineRequest) -> Job:
        submitted = time.perf_counter()
        prompt = build_prompt(self._profile, request.messages, [media.layout for media in request.media])
        check_fits(
            num_prompt_tokens=prompt.num_tokens,
            num_visual_tokens=prompt.num_visual_tokens,
            max_new_tokens=request.generation.max_tokens,
            context_tokens=self._profile.context_tokens,
            kv_cache_tokens=self._kv_cache_tokens,
        )
        if request.generation.json_schema is not None:
            check_schema(request.generation.json_schema)
        if self._config.num_speculative_tokens:
            check_draftable(request.generation)
        check_token_ids(
            (token for token, _ in request.generation.logit_bias),
            vocabulary=self._vllm_config.model_config.get_vocab_size(),
            param="logit_bias",
        )
        max_item_tokens = int(self._runner.llm.input_processor.mm_encoder_cache_size)
        return Job(
            request=request,
            prompt=prompt,
            items=items_of(request.media, prompt, max_tokens=max_item_tokens),
            params=sampling_params(request.generation, self._profile.eos_token_ids),
            submitted=submitted,
        )

    def _events_of(self, output: Output) -> list[EngineEvent]:
        job = output.job
        if output.error is not None:
            return [self._fail(job, output.error)]
        events: list[EngineEvent] = []
        if output.text or output.num_tokens:
            job.num_generated += output.num_tokens
            events.append(TokenEvent(job.request.id, output.text, output.num_tokens))
        if output.finish_reason is not None:
            events.append(self._finish(job, output.finish_reason))
        return events

    def _finish(self, job: Job, reason: FinishReason) -> FinishEvent:
        del self._jobs[job.request.id]
        usage = Usage(
            job.prompt.num_tokens,
            job.prompt.num_visual_tokens,
            job.num_generated,
            cached_tokens=job.num_cached_tokens,
        )
        # Without a first token it is not known how far it came: all of it was waiting.
        waited = max(0.0, time.perf_counter() - job.submitted - job.preparation_seconds)
        timings = job.timings or EngineTimings(queue=waited, preprocess=job.preparation_seconds, prefill=0.0)
        return FinishEvent(job.request.id, reason, usage, timings)

    def _fail(self, job: Job, error: BaseException) -> FailEvent:
        del self._jobs[job.request.id]
        with on_behalf_of(job.request.origin):
            log.error("request %s failed", job.request.id, exc_info=error)
        return FailEvent(job.request.id, as_answer(error).info())

    def _describe(self) -> EngineDescription:
        config = self._config
        attention, reason = _attention(self._vllm_config)
        parameters = num_parameters(self._profile.resolved_path)
        full_bytes = parameters * DTYPE_BYTES[config.resolved_dtype]
        own = self._vllm_config.model_config.quantization if config.quantization == "none" else None
        is_eager = bool(self._vllm_config.model_config.enforce_eager)
        return EngineDescription(
            backend="vllm",
            model_path=self._profile.model_path,
            model_type=self._profile.model_type,
            device=config.device if config.num_devices == 1 else f"{config.device}, {config.num_devices} of them",
            dtype=config.resolved_dtype,
            attention=attention,
            attention_reason=reason,
            decoding="all rows at once" if is_eager else "all rows at once; compiled by vLLM",
            quantization=f"{own} (the checkpoint's own)" if own else config.quantization,
            num_parameters=parameters,
            full_weight_bytes=full_bytes,
            weight_bytes=0 if own or config.quantization != "none" else full_bytes,
            context_tokens=self._profile.context_tokens,
            versions={"vllm": vllm_version(), **{name: version(name) for name in ("torch", "transformers")}},
        )


def as_answer(error: BaseException) -> TruError:
    """What a client is told about an error of vLLM's: never the error's own text."""
    from vllm.exceptions import VLLMClientError
    from vllm.v1.engine.exceptions import EngineGenerateError

    if isinstance(error, EngineGenerateError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, TruError):
        return error
    if isinstance(error, VLLMClientError):
        return InvalidRequestError("The engine refuses this request's parameters; its log has the details.")
    return InternalError()


def _maker(arguments: dict[str, Any], config: VllmConfig, recorder: StatsRecorder) -> Callable[[], Any]:
    """Makes the ``AsyncLLM``.

    Raises:
        ValueError: if VLLM_ENGINE_ARGS has a name that vLLM does not.
    """
    from vllm import AsyncEngineArgs
    from vllm.config import StructuredOutputsConfig
    from vllm.v1.engine.async_llm import AsyncLLM

    check_names(config.more, {field.name for field in dataclasses.fields(AsyncEngineArgs)})
    # llguidance, as in the hf engine: one reading of a schema, whichever engine answers.
    arguments.setdefault("structured_outputs_config", StructuredOutputsConfig(backend="guidance"))
    return lambda: AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[recorder])


def _memory(config: VllmConfig) -> Callable[[], int]:
    """Tells the memory in use: resident on a host, and on cards what vLLM has taken for itself at the start."""
    if config.device == "cpu":
        return HostMemory().used_bytes
    from vllm.platforms import current_platform

    taken = config.num_devices * int(current_platform.get_device_total_memory() * config.gpu_memory_utilization)
    return lambda: taken


def _attention(vllm_config: Any) -> tuple[str, str]:
    """The attention kernel, and why it: vLLM chooses by device, head size and type."""
    from vllm.config import set_current_vllm_config
    from vllm.v1.attention.selector import get_attn_backend

    model, cache = vllm_config.model_config, vllm_config.cache_config
    try:
        with set_current_vllm_config(vllm_config):
            name = get_attn_backend(model.get_head_size(), model.dtype, cache.cache_dtype).get_name()
    except Exception:
        log.exception("vLLM does not tell its attention kernel")
        return "unknown", "vLLM does not tell"
    asked = vllm_config.attention_config.backend is not None
    return name, "VLLM_ENGINE_ARGS asks for it" if asked else "vLLM's choice for this device and model"


__all__ = ["EngineLostError", "VllmEngine", "as_answer"]
