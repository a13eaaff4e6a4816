"""Totals of what a worker's engines have done, which outlive the worker: a counter must never go back."""

from __future__ import annotations

from tru_vlm.engine.base import EngineStats

COUNTED = (
    "num_steps",
    "num_prompt_tokens",
    "num_computed_prompt_tokens",
    "num_generated_tokens",
    "num_draft_tokens",
    "num_accepted_draft_tokens",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "prefix_cache_evictions",
    "mm_cache_queries",
    "mm_cache_hits",
    "mm_cache_evictions",
)
"""The fields of :class:`EngineStats` that only grow while a process lives."""


class EngineTotals:
    """Adds up what the processes in one worker's place have counted, one after the other."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._last = dict.fromkeys(COUNTED, 0)
        self._ended = dict.fromkeys(COUNTED, 0)

    def update(self, pid: int, stats: EngineStats) -> None:
        """A process tells its own totals; one that was not seen before starts from zero."""
        if pid != self._pid:
            self._ended = {name: self[name] for name in COUNTED}
            self._pid = pid
        self._last = {name: getattr(stats, name) for name in COUNTED}

    def __getitem__(self, name: str) -> int:
        """A total, over all processes so far."""
        return self._ended[name] + self._last[name]
