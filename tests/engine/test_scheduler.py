"""The scheduler and the block manager, without a model: who runs, who waits, who holds what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tru_vlm.engine.hf.kv_cache import BlockManager, size_in_tokens
from tru_vlm.engine.hf.scheduler import Phase, Scheduler, Sequence
from tru_vlm.errors import ContextLengthError


def scheduler(num_blocks=64, rows=4, chunk=32, context=4096):
    blocks = BlockManager(num_blocks, block_tokens=16)
    return Scheduler(blocks=blocks, max_batch_size=rows, prefill_chunk_tokens=chunk, context_tokens=context), blocks


def text(name, prompt=20, answer=12):
    return Sequence(name, prompt, answer, num_ready_tokens=prompt)


def run(planner):
    chunks = planner.next_step()
    for chunk in chunks:
        planner.commit(chunk)
    return {chunk.sequence.id: chunk.num_tokens for chunk in chunks}


def test_admission_is_in_order_and_bounded_by_rows():
    planner, _ = scheduler(rows=2)
    for name in "abc":
        planner.add(text(name))
    assert [s.id for s in planner.admit()] == ["a", "b"]
    assert planner.admit() == []
    assert (planner.num_running, planner.num_waiting) == (2, 1)


def test_a_small_one_does_not_overtake_one_that_waits_for_blocks():
    planner, _ = scheduler(num_blocks=4)
    first, big, small = text("first", 20, 12), text("big", 40, 20), text("small", 4, 4)
    for sequence in (first, big, small):
        planner.add(sequence)
    assert planner.admit() == [first]
    planner.remove(first)
    assert planner.admit() == [big]


def test_prefill_is_chunked_and_decoding_rows_run_beside_it():
    planner, _ = scheduler(chunk=32)
    planner.add(text("a", prompt=8))
    planner.admit()
    assert run(planner) == {"a": 8}
    planner.add(text("b", prompt=70))
    planner.admit()
    assert [run(planner) for _ in range(4)] == [
        {"a": 1, "b": 32},
        {"a": 1, "b": 32},
        {"a": 1, "b": 6},
        {"a": 1, "b": 1},
    ]


def test_the_shortest_goes_first_and_the_oldest_still_moves():
    planner, _ = scheduler(chunk=32)
    planner.add(text("long", prompt=600))
    planner.add(text("short", prompt=30))
    planner.admit()
    assert run(planner) == {"long": 8, "short": 24}
    assert run(planner) == {"long": 26, "short": 6}


def test_prefill_stops_before_visual_tokens_without_features():
    planner, _ = scheduler(chunk=32)
    video = Sequence("v", num_prompt_tokens=50, max_new_tokens=4, num_ready_tokens=10)
    planner.add(video)
    planner.admit()
    assert planner.wanted_features() == [(video, 32)]
    assert run(planner) == {"v": 10}
    assert run(planner) == {}
    video.num_ready_tokens = 50
    assert planner.wanted_features() == []
    assert [run(planner) for _ in range(3)] == [{"v": 32}, {"v": 8}, {"v": 1}]
    assert video.phase is Phase.DECODING


def test_features_are_not_made_long_before_they_are_needed():
    planner, _ = scheduler(chunk=32)
    planner.add(Sequence("v", num_prompt_tokens=500, max_new_tokens=4, num_ready_tokens=40))
    planner.admit()
    assert planner.wanted_features() == []


@pytest.mark.parametrize(("prompt", "answer", "limit"), [(4000, 97, "4096"), (1000, 25, "1024")])
def test_what_never_fits_is_refused_with_the_numbers(prompt, answer, limit):
    planner, _ = scheduler()
    with pytest.raises(
        ContextLengthError, match=f"{prompt} tokens, 7 .*{answer}: {prompt + answer} .*room for {limit}"
    ):
        planner.check_fits(num_prompt_tokens=prompt, num_visual_tokens=7, max_new_tokens=answer)
    planner.check_fits(num_prompt_tokens=1000, num_visual_tokens=7, max_new_tokens=24)


@given(st.lists(st.one_of(st.integers(1, 100), st.tuples(st.integers(0, 9))), max_size=60))
def test_blocks_are_never_shared_nor_lost(actions):
    """Numbers allocate so many tokens, tuples free the i-th table."""
    manager, held = BlockManager(24, block_tokens=4), []
    for action in actions:
        if isinstance(action, int):
            table = manager.allocate(action)
            fits = -(-action // 4) <= 24 - sum(t.num_blocks for t in held)
            assert (table is not None) == fits
            held += [table] if table else []
        elif held:
            manager.free(held.pop(action[0] % len(held)))
        slots = [slot for table in held for slot in table.slots.tolist()]
        assert len(set(slots)) == len(slots) == 4 * (24 - manager.num_free_blocks)
        assert all(0 <= slot < 96 for slot in slots)
    for table in held:
        manager.free(table)
    assert manager.allocate(96).is_contiguous


def test_neighbouring_blocks_are_preferred():
    manager = BlockManager(8, block_tokens=1)
    first, second, third = (manager.allocate(n) for n in (2, 2, 2))
    manager.free(first)
    assert manager.allocate(3) is not None  # 0, 1 and 6 here, for there is no run of three
    manager.free(second)
    table = manager.allocate(2)
    assert table.is_contiguous
    assert table.slots.tolist() == [2, 3]
    assert third.slots.tolist() == [4, 5]


@pytest.mark.parametrize(
    ("requested", "useful", "free", "is_cuda", "expected"),
    [
        (1000, 10**9, 10**12, False, 1008),
        (0, 4096, 10**12, False, 4096),
        (0, 10**9, 1_024_000, False, 256),
        (0, 10**9, 1_024_000, True, 880),
        (0, 10**9, 10, False, 16),
    ],
)
def test_size_of_the_cache(requested, useful, free, is_cuda, expected):
    size = size_in_tokens(
        requested_tokens=requested,
        most_useful_tokens=useful,
        token_bytes=1000,
        free_memory_bytes=free,
        is_cuda=is_cuda,
        block_tokens=16,
    )
    assert size == expected
