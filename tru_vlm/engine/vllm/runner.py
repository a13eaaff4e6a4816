"""vLLM's ``AsyncLLM`` on an event loop in a thread of its own; requests go in, what happened comes out of a queue.

Everything below ``_run`` happens in that thread.  The queue carries the job that an output belongs to: an id may be
used again while an output of its former owner is still on the way.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from tru_vlm.engine.base import EngineRequest, EngineTimings
from tru_vlm.engine.vllm.media import Item, engine_input, processed
from tru_vlm.processor.profile import ModelProfile
from tru_vlm.processor.prompt import Prompt

log = logging.getLogger(__name__)

_SHUT_DOWN_SECONDS = 20.0
"""How long vLLM's processes may take to end before vLLM kills them: its own 5 s are too short for a busy machine."""

_CLOSE_SECONDS = 25.0
"""How long closing waits for vLLM: less than a server waits for a worker that stops (``WORKER_SECONDS`` of the LitServe
seams).  Whatever is left then is the guardian's."""

_RESET_SECONDS = 30.0
_EMPTYING_SECONDS = 0.01


class EngineLostError(RuntimeError):
    """vLLM's processes are gone, or do not answer: the worker has to be started again."""


class GenerationError(RuntimeError):
    """vLLM ended one request with an error that it does not explain."""


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way through vLLM.

    Attributes:
        request: the request.
        prompt: its ids.
        items: its media, in the prompt's order.
        params: vLLM's ``SamplingParams``.
        preparation_seconds: spent on it before vLLM, patches included.
        num_cached_tokens: of its prompt, as vLLM tells.
        num_generated: tokens that have come out of the queue.
        submitted: when it came (``perf_counter``).
        timings: as known now.
        task: what runs it.
    """

    request: EngineRequest
    prompt: Prompt
    items: Sequence[Item]
    params: Any
    submitted: float
    preparation_seconds: float = 0.0
    num_cached_tokens: int = 0
    num_generated: int = 0
    timings: EngineTimings | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Output:
    """News of a job: text, its end, or what it failed with."""

    job: Job
    text: str = ""
    num_tokens: int = 0
    finish_reason: Literal["stop", "length"] | None = None
    error: BaseException | None = None


class Runner:
    """Owns the thread, the loop and vLLM's engine in it.

    Args:
        make_llm: makes the ``AsyncLLM``; called in the thread, inside the loop.
        profile: the model.

    Attributes:
        mm_cache_queries, mm_cache_hits: temporal patches looked up in vLLM's cache of processed media, and found.
    """

    def __init__(self, make_llm: Callable[[], Any], profile: ModelProfile) -> None:
        self._profile = profile
        self._numbers = itertools.count()
        self._outputs: queue.SimpleQueue[Output] = queue.SimpleQueue()
        self._lost: BaseException | None = None
        self.mm_cache_queries = self.mm_cache_hits = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        try:
            self.llm = self._in_loop(_call(make_llm)).result()
        except BaseException:
            self._stop_loop(time.monotonic() + _CLOSE_SECONDS)
            raise

    @property
    def is_lost(self) -> bool:
        """Whether vLLM's processes are gone."""
        return self._lost is not None or bool(self.llm.errored)

    def start(self, job: Job) -> None:
        """Hand a job over."""
        self._loop.call_soon_threadsafe(self._begin, job)

    def cancel(self, job: Job) -> None:
        """Stop a job wherever it is; outputs that are on the way still come."""
        self._loop.call_soon_threadsafe(lambda: job.task is not None and job.task.cancel())

    def outputs(self, timeout_seconds: float) -> list[Output]:
        """All that is there; where nothing is, the first that comes in time.

        Raises:
            EngineLostError: if nothing is there and nothing can come any more.
        """
        found: list[Output] = []
        try:
            found.append(self._outputs.get(timeout=timeout_seconds) if timeout_seconds else self._outputs.get_nowait())
            while True:
                found.append(self._outputs.get_nowait())
        except queue.Empty:
            pass
        if self.is_lost:
            raise EngineLostError("vLLM's engine has died; the lines above say why.") from self._lost
        return found

    def forget_caches(self) -> None:
        """Empty vLLM's caches; nothing runs."""
        self._in_loop(self._empty_caches()).result(_RESET_SECONDS)
        self.mm_cache_queries = self.mm_cache_hits = 0

    def close(self) -> None:
        """End vLLM's processes and the thread, as far as they end in time."""
        deadline = time.monotonic() + _CLOSE_SECONDS
        try:
            self._in_loop(self._shut_down()).result(_CLOSE_SECONDS)
        except Exception:
            log.exception("vLLM did not shut down")
        self._stop_loop(deadline)
        del self.llm  # its finalizer needs the interpreter whole

    def _in_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _stop_loop(self, deadline: float) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if not self._thread.is_alive():
            self._loop.close()

    async def _shut_down(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        self.llm.shutdown(timeout=_SHUT_DOWN_SECONDS)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _empty_caches(self) -> None:
        # The last request's blocks are free a moment after its end, and nothing tells when.
        while not await self.llm.reset_prefix_cache():  # noqa: ASYNC110
            await asyncio.sleep(_EMPTYING_SECONDS)
        await self.llm.reset_mm_cache()
        await self.llm.reset_encoder_cache()

    def _begin(self, job: Job) -> None:
        job.task = self._loop.create_task(self._run(job))

    async def _run(self, job: Job) -> None:
        """Run a job to its end; a second time where vLLM turns out to have lost media that it was thought to have."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            if not await self._generate(job) and not await self._generate(job):
                self._outputs.put(Output(job, error=GenerationError("vLLM lost the media of a request twice")))
        except EngineDeadError as error:
            self._lost = error
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this job's
            self._outputs.put(Output(job, error=error))

    async def _generate(self, job: Job) -> bool:
        """Whether it came to an end; False when vLLM wants the media again."""
        # An id of its own: the request's may be used again while vLLM is still told to abort this one.
        vllm_id = f"{job.request.id}-{next(self._numbers)}"
        data = await self._data_of(job)
        job.preparation_seconds += time.perf_counter() - job.submitted
        prompt = engine_input(job.prompt, job.items, data, cache_salt=job.request.cache_salt)
        # Cancelled while it waits for tokens, generate() tells vLLM.  It hands the request over without waiting.
        async for output in self.llm.generate(prompt, job.params, vllm_id):
            if self._is_cache_miss(job, output):
                job.submitted = time.perf_counter()
                return False
            self._pass_on(job, output)
        return True

    async def _data_of(self, job: Job) -> list[Any]:
        """What vLLM needs of each item: its patches, or None where its cache has them.

        vLLM mirrors in this process which items its other process has.  Both see the items in the same order, so this
        must be followed by handing the request over with no other one in between; a difference heals by a retry.
        """
        cache = self.llm.renderer.mm_processor_cache
        made: dict[str, Any] = {}
        entry: tuple[Any, list[Any]] | None
        while missing := [i for i in job.items if i.key not in made and not (cache and cache.is_cached_item(i.key))]:
            for item in missing:
                made[item.key] = await asyncio.to_thread(processed, item, self._profile)
        if cache is None:
            return [made[item.key] for item in job.items]
        for item in job.items:
            num_patches = item.stop - item.start
            self.mm_cache_queries += num_patches
            if cache.is_cached_item(item.key):
                self.mm_cache_hits += num_patches
                cache.touch_sender_cache_item(item.key)
        data = []
        for item in job.items:
            if item.key not in made and not cache.is_cached_item(item.key):  # gave way to this request's own others
                made[item.key] = processed(item, self._profile)
            entry = (made[item.key], []) if item.key in made else None
            data.append(cache.get_and_update_item(entry, item.key)[0])
        return data

    @staticmethod
    def _is_cache_miss(job: Job, output: Any) -> bool:
        return bool(output.finished and output.outputs[0].finish_reason == "error" and job.items) and not (
            job.num_generated or output.outputs[0].token_ids
        )

    def _pass_on(self, job: Job, output: Any) -> None:
        """Put an output of vLLM's into the queue, in our words."""
        completion = output.outputs[0]
        if output.num_cached_tokens is not None:
            job.num_cached_tokens = output.num_cached_tokens
        job.timings = timings_of(job, output.metrics) or job.timings
        reason = completion.finish_reason
        if reason not in {None, "stop", "length"}:
            raise GenerationError(f"vLLM ended the request with {reason!r}")
        self._outputs.put(Output(job, completion.text, len(completion.token_ids), reason))


def timings_of(job: Job, metrics: Any) -> EngineTimings | None:
    """Stages up to the first token, from vLLM's own clock; None before there is one."""
    if metrics is None or not metrics.first_token_ts:
        return None
    return EngineTimings(
        queue=max(0.0, metrics.scheduled_ts - metrics.queued_ts),
        preprocess=job.preparation_seconds,
        prefill=max(0.0, metrics.first_token_ts - metrics.scheduled_ts),
    )


async def _call(make: Callable[[], Any]) -> Any:
    return make()
