"""Totals of workers: they add up over processes and never go back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tru_vlm.api.workers.engine_totals import COUNTED, EngineTotals
from tru_vlm.engine.base import EngineStats


def stats(number: int) -> EngineStats:
    gauges = {"num_running": 1, "num_waiting": 0, "kv_cache_tokens": 1, "kv_cache_used_tokens": 1}
    return EngineStats(**gauges, device_memory_bytes=1, **dict.fromkeys(COUNTED, number))


@given(st.lists(st.lists(st.integers(0, 1000), min_size=1), max_size=5))
def test_they_are_the_sum_of_what_each_process_counted_and_never_go_back(processes: list[list[int]]) -> None:
    totals, seen = EngineTotals(), 0
    for pid, steps in enumerate(processes):
        for number in sorted(steps):
            totals.update(pid, stats(number))
            assert totals["num_generated_tokens"] >= seen
            seen = totals["num_generated_tokens"]
    assert all(totals[name] == sum(max(steps) for steps in processes) for name in COUNTED)


def test_a_connection_that_is_made_again_counts_nothing_twice() -> None:
    totals = EngineTotals()
    for _ in range(2):
        totals.update(7, stats(5))
    assert totals["num_steps"] == 5
