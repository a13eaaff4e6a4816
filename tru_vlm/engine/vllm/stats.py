"""Counts what vLLM tells of each of its iterations.  Written by the loop's thread, read by the engine's."""

from __future__ import annotations

import time
from typing import Any

import psutil

_MEMORY_SECONDS = 1.0


class StatsRecorder:
    """vLLM's stat logger: it has the methods of ``StatLoggerBase``, and totals instead of a log.

    Attributes:
        is_counting: whether what it is told counts.
        num_running: sequences in vLLM's batch.
        kv_cache_usage: share of the KV cache that they hold.
        num_steps: iterations so far.
        num_prompt_tokens, num_computed_prompt_tokens, num_generated_tokens: totals so far.
        num_draft_tokens, num_accepted_draft_tokens: tokens that were drafted, and that answers went on with; so far.
        prefix_cache_queries, prefix_cache_hits: prompt tokens looked up, and found; so far.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Nothing has happened yet; and until somebody says so, nothing does: vLLM tells of some things late."""
        self.is_counting = False
        self.num_running = 0
        self.kv_cache_usage = 0.0
        self.num_steps = 0
        self.num_prompt_tokens = self.num_computed_prompt_tokens = self.num_generated_tokens = 0
        self.num_draft_tokens = self.num_accepted_draft_tokens = 0
        self.prefix_cache_queries = self.prefix_cache_hits = 0

    def __call__(self, vllm_config: Any, engine_index: int = 0) -> StatsRecorder:
        """As the factory that vLLM asks for a logger."""
        del vllm_config, engine_index
        return self

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """One iteration; each part may be None."""
        del mm_cache_stats, engine_idx
        if not self.is_counting:
            return
        if scheduler_stats is not None:
            self.num_steps += 1
            self.num_running = scheduler_stats.num_running_reqs
            self.kv_cache_usage = scheduler_stats.kv_cache_usage
            self.prefix_cache_queries += scheduler_stats.prefix_cache_stats.queries
            self.prefix_cache_hits += scheduler_stats.prefix_cache_stats.hits
            if (drafts := scheduler_stats.spec_decoding_stats) is not None:
                self.num_draft_tokens += drafts.num_draft_tokens
                self.num_accepted_draft_tokens += drafts.num_accepted_tokens
        if iteration_stats is not None:
            self.num_prompt_tokens += iteration_stats.prompt_token_stats.total
            self.num_computed_prompt_tokens += iteration_stats.prompt_token_stats.computed
            self.num_generated_tokens += iteration_stats.num_generation_tokens

    def log(self) -> None:
        """Nothing to write."""

    def log_engine_initialized(self) -> None:
        """Nothing to write."""

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        """Nothing to write: the engine does not sleep."""


class HostMemory:
    """Bytes that this process and its children hold in memory, measured at most once a second."""

    def __init__(self) -> None:
        self._processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        self._bytes = 0
        self._measured = float("-inf")

    def used_bytes(self) -> int:
        """Their resident sets."""
        now = time.monotonic()
        if now - self._measured >= _MEMORY_SECONDS:
            self._bytes, self._measured = sum(_resident(process) for process in self._processes), now
        return self._bytes


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
