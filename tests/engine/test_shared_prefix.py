"""Rows that begin alike attend to that beginning together: the same result, whoever else is in the step."""

import pytest
import torch
from engine_helpers import drive, request, video
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from tru_vlm.engine.hf import attention
from tru_vlm.engine.hf.kv_cache import BlockManager
from tru_vlm.engine.hf.shared_prefix import MIN_SHARED_TOKENS, Group, GroupFinder, GroupLayout, GroupRow, attend_group

BLOCK = 16
ENOUGH = MIN_SHARED_TOKENS // BLOCK


def tables_of(*names: str):
    """One table for each name; a letter is a block's content, and all but the last are shared by equal beginnings."""
    manager = BlockManager(256, BLOCK)
    tables = []
    for name in names:
        keys = [name[:end].encode() for end in range(1, len(name))]
        table = manager.allocate(len(name) * BLOCK, keys)
        manager.publish(table, keys, start=0, stop=len(keys))
        tables.append(table)
    return tables


def groups_of(*names: str) -> list[tuple[tuple[int, ...], int]]:
    found = GroupFinder(BLOCK).find(tables_of(*names))
    return sorted((group.members, group.num_shared_tokens // BLOCK) for group in found)


def test_rows_are_grouped_by_the_longest_beginning_that_two_of_them_share():
    system, video_a, video_b = "s" * ENOUGH, "a" * 9, "b" * 7
    assert groups_of(
        system + video_a + "x", system + video_b + "x", system + video_a + "y", system + video_b + "zz"
    ) == [
        ((0, 2), ENOUGH + 9),
        ((1, 3), ENOUGH + 7),
    ]
    assert groups_of(system + "x", system + "y", system + "zzz") == [((0, 1, 2), ENOUGH)]
    assert groups_of(system + video_a + "x", system + video_a + "y", system + "z") == [((0, 1), ENOUGH + 9)]


def test_too_little_in_common_is_no_group():
    assert groups_of("s" * (ENOUGH - 1) + "x", "s" * (ENOUGH - 1) + "y") == []
    assert groups_of("abcdefghx", "klmnopqrx") == []
    assert groups_of("s" * 30) == []
    assert groups_of() == []


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.text("ab", min_size=1, max_size=12), max_size=6))
def test_groups_hold_what_they_say(names):
    tables = tables_of(*names)
    seen: set[int] = set()
    for group in GroupFinder(BLOCK).find(tables):
        assert len(group.members) > 1
        assert not seen.intersection(group.members)
        seen.update(group.members)
        beginnings = {tables[member].blocks[: group.num_shared_tokens // BLOCK] for member in group.members}
        assert len(beginnings) == 1
        assert all(len(tables[member].slots) > group.num_shared_tokens for member in group.members)


def test_other_rows_are_looked_at_anew():
    one, two, three = tables_of(*("s" * ENOUGH + end for end in "xyz"))
    finder = GroupFinder(BLOCK)
    assert finder.find([one, two]) == (Group((0, 1), MIN_SHARED_TOKENS),)
    assert finder.find([one, two, three]) == (Group((0, 1, 2), MIN_SHARED_TOKENS),)
    assert finder.find([three]) == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("nums_queries", [(1, 1, 1), (4, 1, 3)], ids=["one token each", "with drafts"])
def test_attention_is_that_of_each_row_alone(dtype, shuffled, nums_queries):
    torch.manual_seed(0)
    names = ["s" * 6 + "x", "s" * 6 + "yyy", "s" * 6 + "zz"]
    if shuffled:  # others hold every second block, so that nothing lies side by side
        manager = BlockManager(64, BLOCK)
        held = [manager.allocate(BLOCK) for _ in range(64)]
        for table in held[::2]:
            manager.free(table)
        tables = []
        for name in names:
            keys = [name[:end].encode() for end in range(1, len(name))]
            table = manager.allocate(len(name) * BLOCK, keys)
            manager.publish(table, keys, start=0, stop=len(keys))
            tables.append(table)
    else:
        tables = tables_of(*names)
    (group,) = GroupFinder(BLOCK).find(tables)
    num_cached = [6 * BLOCK, 9 * BLOCK - 4, 8 * BLOCK - nums_queries[2]]
    keys, values = (torch.randn(256 * BLOCK, 2, 32, dtype=dtype) for _ in range(2))
    query = torch.randn(10, 8, 32, dtype=dtype)
    starts = [6, 0, 2]
    rows = [GroupRow(*row) for row in zip(tables, num_cached, starts, nums_queries, strict=True)]
    layout = GroupLayout.build(rows, group.num_shared_tokens, dtype)
    assert (layout.first_slot is None) is shuffled
    got = iter(attend_group(query, keys, values, layout, scaling=0.3))
    for row in rows:
        for place in range(row.num_queries):
            slots = torch.from_numpy(row.table.slots[: row.num_cached_tokens + 1 + place])
            alone = scaled_dot_product_attention(
                query[row.start + place][None, :, None],
                keys[slots].transpose(0, 1)[None],
                values[slots].transpose(0, 1)[None],
                scale=0.3,
                enable_gqa=True,
            )[0, :, 0]
            torch.testing.assert_close(
                next(got),
                alone,
                rtol=1e-5 if dtype == torch.float32 else 2e-2,
                atol=1e-2 if dtype == torch.bfloat16 else 1e-6,
            )
    assert next(got, None) is None


def test_questions_on_one_video_run_together_and_say_what_they_say_alone(make_engine, monkeypatch):
    sizes = []

    def counting(query, keys, values, group, *, scaling):
        sizes.append(len(group.at))
        return attend_group(query, keys, values, group, scaling=scaling)

    monkeypatch.setattr(attention, "attend_group", counting)
    clip, other = video(1, 12, 64, 96), video(2, 8)
    items = [
        request("a", clip, prompt="What happens?", max_tokens=20, ignore_eos=True),
        request("b", clip, prompt="Which colour?", max_tokens=12, ignore_eos=True),
        request("c", other, prompt="What happens?", max_tokens=16, ignore_eos=True),
        request("d", clip, prompt="When does it begin, and where does it go?", max_tokens=25, ignore_eos=True),
    ]
    alone = {}
    for item in items:
        alone |= {name: outcome.text for name, outcome in drive(make_engine(), [item]).items()}
    assert not sizes
    together = drive(make_engine(max_batch_size=4), items, arrivals=[0, 4, 5, 6])
    assert {name: outcome.text for name, outcome in together.items()} == alone
    assert {2, 3} <= set(sizes)
