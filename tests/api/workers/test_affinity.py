"""Who gets a request: the worker that holds its video, unless that would keep it waiting."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tru_vlm.api.workers.affinity import Affinity, AffinityStats


def test_a_video_goes_where_it_was() -> None:
    affinity = Affinity(num_workers=3, max_requests_per_worker=8)
    idle = {0: 0, 1: 0, 2: 0}
    first = affinity.choose(["a"], {0: 1, 1: 0, 2: 1})
    assert first == 1
    assert [affinity.choose(["a"], idle) for _ in range(3)] == [1, 1, 1]
    assert affinity.stats() == AffinityStats(num_hits=3, num_misses=1, num_diverted=0)


def test_without_a_known_video_the_least_busy_worker_is_taken() -> None:
    affinity = Affinity(num_workers=3, max_requests_per_worker=8)
    assert affinity.choose([], {0: 2, 1: 1, 2: 3}) == 1
    assert affinity.choose(["a"], {0: 2, 1: 4, 2: 1}) == 2


def test_new_videos_spread_over_idle_workers() -> None:
    affinity = Affinity(num_workers=2, max_requests_per_worker=8)
    assert [affinity.choose([key], {0: 0, 1: 0}) for key in "abcd"] == [0, 1, 0, 1]


def test_a_hot_video_spreads_when_its_worker_is_full_or_busier_by_half_a_batch() -> None:
    affinity = Affinity(num_workers=2, max_requests_per_worker=4)
    assert affinity.choose(["hot"], {0: 0, 1: 0}) == 0
    assert affinity.choose(["hot"], {0: 2, 1: 0}) == 0
    assert affinity.choose(["hot"], {0: 3, 1: 0}) == 1
    assert affinity.choose(["hot"], {0: 4, 1: 3}) == 1, "both hold it now"
    assert affinity.choose(["hot"], {0: 3, 1: 4}) == 0
    assert affinity.choose(["hot"], {0: 4, 1: 4}) is None
    assert affinity.stats() == AffinityStats(num_hits=3, num_misses=1, num_diverted=1)


def test_a_worker_that_died_holds_nothing() -> None:
    affinity = Affinity(num_workers=2, max_requests_per_worker=4)
    assert affinity.choose(["a"], {0: 1, 1: 0}) == 1
    affinity.forget(1)
    assert affinity.choose(["a"], {0: 0, 1: 1}) == 0
    assert affinity.stats().num_hits == 0


def test_what_was_not_asked_about_for_long_is_forgotten() -> None:
    affinity = Affinity(num_workers=1, max_requests_per_worker=4, max_keys=2)
    for key in ("a", "b", "a", "c", "a", "b"):  # "b" is the oldest when "c" comes
        affinity.choose([key], {0: 0})
    assert affinity.stats() == AffinityStats(num_hits=2, num_misses=4, num_diverted=0)


def test_the_worker_with_most_of_several_videos_is_taken() -> None:
    affinity = Affinity(num_workers=2, max_requests_per_worker=8)
    affinity.choose(["a"], {0: 0, 1: 1})
    affinity.choose(["b", "c"], {0: 1, 1: 0})
    assert affinity.choose(["a", "b", "c"], {0: 0, 1: 3}) == 1


@given(st.data())
def test_nobody_waits_while_a_row_is_free_and_no_worker_is_far_busier_than_another(data: st.DataObject) -> None:
    num_workers, rows = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    affinity = Affinity(num_workers, rows, max_keys=3)
    loads = dict.fromkeys(range(num_workers), 0)
    num_given = 0
    for _ in range(data.draw(st.integers(0, 40))):
        busy = [worker for worker, load in loads.items() if load]
        if busy and data.draw(st.booleans()):
            loads[data.draw(st.sampled_from(busy))] -= 1
            continue
        least = min(loads.values())
        chosen = affinity.choose([data.draw(st.sampled_from("abcde"))], loads)
        if chosen is None:
            assert least == rows
            continue
        assert loads[chosen] < rows
        assert loads[chosen] - least <= rows // 2
        loads[chosen] += 1
        num_given += 1
    stats = affinity.stats()
    assert stats.num_hits + stats.num_misses + stats.num_diverted == num_given
