"""The scheduler and the block manager, without a model: who runs, who waits, who holds what."""

import pytest
from hypothesis import given, settings
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
        planner.commit(chunk, chunk.num_tokens)
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
    assert manager.allocate(96).num_neighbour_tokens == 96


def test_neighbouring_blocks_are_preferred():
    manager = BlockManager(8, block_tokens=1)
    first, second, third = (manager.allocate(n) for n in (2, 2, 2))
    manager.free(first)
    assert manager.allocate(3) is not None  # 0, 1 and 6 here, for there is no run of three
    manager.free(second)
    table = manager.allocate(2)
    assert table.num_neighbour_tokens == 2
    assert table.slots.tolist() == [2, 3]
    assert third.slots.tolist() == [4, 5]


class World:
    """A scheduler, and a stand-in for the model: a slot holds all of its sequence up to its token."""

    def __init__(self, num_blocks, chunk):
        self.blocks = BlockManager(num_blocks, block_tokens=2)
        self.planner = Scheduler(blocks=self.blocks, max_batch_size=3, prefill_chunk_tokens=chunk, context_tokens=100)
        self.slots: dict[int, str] = {}
        self.texts: dict[str, str] = {}
        self.alive: list[Sequence] = []

    def submit(self, text, max_new_tokens):
        sequence = Sequence(f"s{len(self.texts)}", len(text), max_new_tokens, len(text), keys=keys_of(text))
        self.texts[sequence.id] = text
        self.alive.append(sequence)
        self.planner.add(sequence)

    def remove(self, index, *, discard):
        if self.alive:
            self.planner.remove(self.alive.pop(index % len(self.alive)), discard=discard)

    def step(self):
        self.planner.catch_up()
        self.planner.admit()
        chunks = self.planner.next_step()
        assert chunks or not self.planner.num_running, "everyone waits for another"
        for chunk in chunks:
            self.compute(chunk)
            self.planner.commit(chunk, chunk.num_tokens)
            self.go_on(chunk.sequence)

    def compute(self, chunk):
        table, text = chunk.sequence.table, self.texts[chunk.sequence.id]
        stop = chunk.start + chunk.num_tokens
        held = [self.slots.get(slot) for slot in table.slots[: chunk.start].tolist()]
        assert held == [text[: index + 1] for index in range(chunk.start)], "it reads what is not its own beginning"
        holders = [self.blocks._num_holders[block] for block in table.blocks[chunk.start // 2 :]]
        assert set(holders) == {1}, "a block that is written to is shared"
        for index in range(chunk.start, stop):
            self.slots[int(table.slots[index])] = text[: index + 1]

    def go_on(self, sequence):
        """A next token of the answer, or the end."""
        if sequence.num_computed_tokens >= sequence.num_reserved_tokens - 1:
            self.alive.remove(sequence)
            self.planner.remove(sequence)
        elif sequence.num_computed_tokens >= sequence.num_prompt_tokens:
            text = self.texts[sequence.id]
            self.texts[sequence.id] = text + "ab"[(len(text) * 7 + text.count("a")) % 2]
            sequence.keys[:] = keys_of(self.texts[sequence.id])


def keys_of(text, size=2):
    return [text[:end].encode() for end in range(size, len(text) + 1, size)]


SUBMIT = st.tuples(st.just("submit"), st.text("ab", min_size=1, max_size=14), st.integers(1, 6))
REMOVE = st.tuples(st.sampled_from(["abort", "fail"]), st.integers(0, 5))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    actions=st.lists(st.one_of(SUBMIT, REMOVE, st.just(("step",)), st.just(("step",))), max_size=40),
    num_blocks=st.integers(10, 30),
    chunk=st.sampled_from([2, 3, 8]),
)
def test_shared_blocks_hold_what_their_keys_say_and_everyone_comes_to_an_end(actions, num_blocks, chunk):
    world = World(num_blocks, chunk)
    for kind, *values in actions:
        if kind == "submit":
            world.submit(*values)
        elif kind == "step":
            world.step()
        else:
            world.remove(*values, discard=kind == "fail")
    for _ in range(1000):
        if world.alive:
            world.step()
    assert not world.alive
    assert not world.planner._promised
    blocks = world.blocks
    assert blocks.num_free_blocks == num_blocks
    blocks.free(blocks.allocate(blocks.capacity_tokens))
    assert (blocks._free, blocks.num_cached_blocks) == ([(0, num_blocks)], 0)


KEYS = [bytes([number]) for number in range(20)]


def filled(manager, num_tokens, keys):
    table = manager.allocate(num_tokens, keys)
    manager.publish(table, keys, start=0, stop=len(keys))
    return table


def test_cached_blocks_are_shared_and_evicted_only_when_nobody_holds_them():
    manager = BlockManager(8, block_tokens=1)
    first = filled(manager, 4, KEYS[:4])
    second = manager.allocate(6, KEYS[:3])
    assert (second.blocks[:3], second.num_cached_tokens) == (first.blocks[:3], 3)
    assert manager.num_free_blocks == 1
    manager.free(first)
    assert (manager.num_free_blocks, manager.num_cached_blocks) == (2, 4)
    assert manager.allocate(3) is None
    third = manager.allocate(2)  # the fourth, which is idle, and the last one
    assert set(third.blocks) == {first.blocks[3], 7}
    assert (manager.num_cached_blocks, manager.num_evictions) == (3, 1)


def test_the_least_recently_used_is_evicted_first_and_of_one_sequence_its_end():
    manager = BlockManager(6, block_tokens=1)
    for keys in (KEYS[:3], KEYS[10:13]):
        manager.free(filled(manager, 3, keys))
    manager.free(manager.allocate(1))
    assert manager.num_evictions == 1
    table = manager.allocate(3, KEYS[:3])
    assert table.num_cached_tokens == 2  # of the eldest only the end is gone; and now it is the youngest
    manager.free(table)
    manager.free(manager.allocate(4))
    assert manager.allocate(6, KEYS[:3]).num_cached_tokens == 2


def test_an_allocation_does_not_evict_what_it_shares():
    manager = BlockManager(4, block_tokens=1)
    manager.free(filled(manager, 3, KEYS[:3]))
    table = manager.allocate(4, KEYS[:3])
    assert (table.num_cached_tokens, table.num_neighbour_tokens) == (3, 4)
    assert manager.allocate(1) is None


def test_a_next_turn_lies_beside_the_last_one():
    manager = BlockManager(32, block_tokens=1)
    lowest, first, other = manager.allocate(2), filled(manager, 10, KEYS[:8]), manager.allocate(4)
    for table in (lowest, first):
        manager.free(table)
    assert manager.allocate(10, KEYS[:8]).blocks == tuple(range(2, 12))
    assert manager.allocate(2).blocks == (0, 1)
    assert other.blocks == (12, 13, 14, 15)


def test_the_same_content_computed_twice_is_cached_once():
    manager = BlockManager(8, block_tokens=1)
    first, second = manager.allocate(3), manager.allocate(3)
    for table in (first, second):
        manager.publish(table, KEYS[:2], start=0, stop=2)
    assert manager.num_cached_blocks == 2
    manager.free(second)
    assert manager.num_free_blocks == 5
    manager.free(first)
    assert manager.allocate(3, KEYS[:2]).blocks[:2] == first.blocks[:2]


def test_discarded_content_is_not_found_again_and_its_other_holders_keep_it():
    manager = BlockManager(8, block_tokens=1)
    first = filled(manager, 3, KEYS[:3])
    second = manager.allocate(4, KEYS[:2])
    manager.discard(second)
    manager.free(second)
    assert manager.num_cached_blocks == 1  # the third, which was not in the discarded table
    assert manager.num_free_blocks == 5
    assert manager.allocate(4, KEYS[:3]).num_cached_tokens == 0
    manager.free(first)


def test_two_of_one_beginning_do_not_compute_it_twice():
    planner, _ = scheduler(chunk=32)
    keys = [b"1", b"2", b"3", b"4"]
    first, second = text("first", prompt=70), text("second", prompt=66)
    first.keys, second.keys = [*keys], [*keys]
    planner.add(first)
    planner.admit()
    planner.add(second)
    planner.admit()
    assert run(planner) == {"first": 32}
    assert planner.catch_up() == [second]
    assert second.num_computed_tokens == 32
    assert run(planner) == {"first": 32}
    planner.catch_up()
    assert run(planner) == {"first": 6, "second": 2}
    assert (second.num_cached_tokens, planner.num_prefix_hits, planner.num_prefix_queries) == (64, 64, 136)


def test_nobody_waits_for_a_block_that_its_promiser_took_from_the_cache_in_the_end():
    planner, _ = scheduler(chunk=16)

    def begin(name, keys, prompt):
        sequence = text(name, prompt)
        sequence.keys = [*keys]
        planner.add(sequence)
        planner.admit()
        return sequence

    def forget(*keys):
        planner.remove(begin("failing", keys, 16 * len(keys) + 1), discard=True)

    first = begin("first", [b"1", b"2"], 40)
    while first.phase is Phase.PREFILLING:
        run(planner)
    planner.remove(first)
    forget(b"1")
    second = begin("second", [b"1", b"2"], 40)  # finds nothing, and promises both
    run(planner)
    planner.catch_up()
    assert second.num_cached_tokens == 16  # the second block, after all
    run(planner)
    forget(b"1", b"2")
    third = begin("third", [b"1", b"2"], 40)
    for _ in range(3):
        run(planner)
    assert third.phase is Phase.DECODING


def test_the_last_token_is_computed_even_when_all_is_cached():
    planner, _ = scheduler(chunk=64)
    for name in ("first", "second"):
        sequence = text(name, prompt=32)
        sequence.keys = [b"1", b"2"]
        planner.add(sequence)
        planner.admit()
        assert run(planner) == {name: 32 if name == "first" else 16}
        planner.remove(sequence)


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
