"""What is kept of past requests: it saves the work that it should, and never changes an answer."""

import pytest
import torch
from engine_helpers import drive, image, recorded_tokens, request, video
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tru_vlm.engine.base import EngineRequest, FailEvent
from tru_vlm.engine.hf.engine import HfEngine
from tru_vlm.engine.hf.vision import VisionEncoder, VisualFeatures
from tru_vlm.processor.prompt import MediaLayout, build_prompt
from tru_vlm.types import GenerationParams, MediaPart, Message, TextPart

LONG = video(1, 12, 64, 96)  # 6 temporal patches of 6 tokens


def chat(name, *turns, media=(LONG,), system=None, **generation) -> EngineRequest:
    """Turns are the user's and the model's by turns; the media stand before the first one's words."""
    messages = [Message("system", (TextPart(system),))] if system else []
    for index, turn in enumerate(turns):
        places = tuple(MediaPart(i) for i in range(len(media))) if index == 0 else ()
        messages.append(Message("assistant" if index % 2 else "user", (*places, TextPart(turn))))
    params = GenerationParams(**({"max_tokens": 8, "temperature": 0.0, "ignore_eos": True} | generation))
    return EngineRequest(name, tuple(messages), tuple(media), params)


def prompt_of(profile, item):
    layouts = [MediaLayout(m.kind, len(m.frames), *m.frames.shape[2:], m.timestamps_seconds) for m in item.media]
    return build_prompt(profile, item.messages, layouts)


def common_tokens(profile, one, two) -> int:
    pairs = zip(prompt_of(profile, one).token_ids, prompt_of(profile, two).token_ids, strict=False)
    return next(index for index, (a, b) in enumerate(pairs) if a != b)


def computed(engine, item) -> int:
    """Prompt tokens that the model is run on for a request, alone."""
    before = engine.stats().num_computed_prompt_tokens
    outcome = drive(engine, [item])[item.id]
    count = engine.stats().num_computed_prompt_tokens - before
    assert outcome.end.usage.cached_tokens == outcome.end.usage.prompt_tokens - count
    return count


@pytest.fixture
def tower_calls(monkeypatch):
    """Each call's number of temporal patches."""
    calls, encode = [], VisionEncoder.encode

    def counting(self, media, start, stop):
        calls.append(stop - start)
        return encode(self, media, start, stop)

    monkeypatch.setattr(VisionEncoder, "encode", counting)
    return calls


@pytest.mark.parametrize("block_tokens", [1, 16])
def test_a_second_question_computes_only_its_own_words(block_tokens, make_engine, profile, tower_calls):
    engine = make_engine(block_tokens=block_tokens, prefill_chunk_tokens=32)
    first, second = chat("a", "What happens?"), chat("b", "Does it move, and when does it begin?")
    num_tokens, common = prompt_of(profile, second).num_tokens, common_tokens(profile, first, second)
    assert common > 36, "the video is not part of what they share"
    drive(engine, [first])
    assert sum(tower_calls) == 6
    assert computed(engine, second) == num_tokens - common // block_tokens * block_tokens
    assert sum(tower_calls) == 6
    assert computed(engine, second) <= block_tokens  # the very same: its last token, and what shares a block with it


@pytest.mark.parametrize("block_tokens", [1, 16])
def test_a_chats_next_turn_computes_only_the_turn(block_tokens, make_engine, profile):
    engine = make_engine(block_tokens=block_tokens)
    first = chat("a", "What happens?", max_tokens=60, ignore_eos=False)
    outcome = drive(engine, [first])["a"]
    assert outcome.reason == "stop", "the answer does not end by itself"
    second = chat("b", "What happens?", outcome.text, "And then?")
    in_cache = prompt_of(profile, first).num_tokens + outcome.num_tokens - 1  # the end token is never run
    turn = prompt_of(profile, second).num_tokens - in_cache
    assert turn < 40
    assert computed(engine, second) == turn + in_cache % block_tokens


def test_two_at_once_on_one_video_compute_it_once(make_engine, profile, tower_calls):
    engine = make_engine(block_tokens=1, prefill_chunk_tokens=16)
    items = [chat("a", "What happens?"), chat("b", "When?"), chat("c", "Which colour?", system="Be brief.")]
    outcomes = drive(engine, items, arrivals=[0, 2, 3])  # while the first is prefilling
    own = prompt_of(profile, items[1]).num_tokens - common_tokens(profile, *items[:2])
    apart = prompt_of(profile, items[2]).num_tokens - common_tokens(profile, *items[1:])
    assert engine.stats().num_computed_prompt_tokens == prompt_of(profile, items[0]).num_tokens + own + apart
    assert sum(tower_calls) == 6  # the third shares no keys and values, but the features
    assert outcomes["b"].end.usage.cached_tokens > 36
    expected = drive(plain(make_engine), items)
    assert {name: o.text for name, o in outcomes.items()} == {name: o.text for name, o in expected.items()}


@pytest.mark.parametrize("how", ["abort", "fail"])
def test_who_waits_for_anothers_prefill_goes_on_without_it(how, make_engine, monkeypatch):
    expected = tokens_of(plain(make_engine), [chat("b", "When?"), chat("c", "Who?")])
    engine = make_engine(prefill_chunk_tokens=16, block_tokens=4)
    run = engine._runner.run

    def failing(rows):
        first = engine._rows.get("a")
        if first and any(row.table is first.sequence.table and row.num_cached_tokens > 20 for row in rows):
            raise RuntimeError("bug")
        return run(rows)

    if how == "fail":
        monkeypatch.setattr(engine._runner, "run", failing)
    items = [chat("a", "What happens?"), chat("b", "When?"), chat("c", "Who?")]
    tokens = tokens_of(engine, items, aborts={"a": 3} if how == "abort" else {})
    assert len(tokens["a"]) == 0
    assert {name: tokens[name] for name in "bc"} == expected


def plain(make_engine, **numbers) -> HfEngine:
    return make_engine(prefix_cache=False, feature_cache_bytes=0, **numbers)


def tokens_of(engine, items, *, arrivals=None, aborts=None) -> dict[str, list[int]]:
    tokens = recorded_tokens(engine)
    drive(engine, items, arrivals=arrivals, aborts=aborts)
    return {item.id: tokens[item.id] for item in items}


OTHER_OPTIONS = video(7, 6, 64, 96)  # as if sampled from the same file with a lower rate
CONVERSATIONS = {
    "what": chat("", "What happens?"),
    "when": chat("", "When does it begin?"),
    "system": chat("", "What happens?", system="You are terse."),
    "options": chat("", "What happens?", media=(OTHER_OPTIONS,)),
    "next": chat("", "What happens?", "A red circle moves left.", "And then?"),
    "third": chat("", "What happens?", "A red circle moves left.", "And then?", "Nothing.", "Really?"),
    "odd": chat("", "What happens?", media=(video(8, 5, 64, 64),)),
    "mixed": chat("", "Compare.", media=(image(9, 64, 96), LONG)),
    "text": chat("", "Tell me a story that is long enough for several blocks of the cache, please.", media=()),
    "sampled": chat("", "What happens?", temperature=3.0, seed=5, top_k=40),
}
EXPECTED: dict[str, list[int]] = {}


def named(request_id, name) -> EngineRequest:
    item = CONVERSATIONS[name]
    return EngineRequest(request_id, item.messages, item.media, item.generation)


def expected_tokens(make_engine, name) -> list[int]:
    if name not in EXPECTED:
        EXPECTED[name] = tokens_of(plain(make_engine), [named("a", name)])["a"]
    return EXPECTED[name]


PATCH_BYTES = 6 * 256 * 4 * 2  # LONG's, on the demo model: embeddings and one layer of deepstack features

arrivals_and_aborts = st.tuples(
    st.sampled_from(sorted(CONVERSATIONS)), st.integers(0, 25), st.none() | st.integers(0, 30)
)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    plan=st.lists(arrivals_and_aborts, min_size=3, max_size=9),
    kv_cache_tokens=st.sampled_from([208, 320, 8192]),
    feature_cache_bytes=st.sampled_from([0, 2 * PATCH_BYTES + 100, 1 << 20]),
    chunk=st.sampled_from([16, 40, 512]),
    block_tokens=st.sampled_from([4, 16]),
)
def test_an_answer_with_caches_equals_the_answer_without(
    *, plan, kv_cache_tokens, feature_cache_bytes, chunk, block_tokens, make_engine
):
    engine = make_engine(
        kv_cache_tokens=kv_cache_tokens,
        feature_cache_bytes=feature_cache_bytes,
        prefill_chunk_tokens=chunk,
        block_tokens=block_tokens,
        max_batch_size=3,
    )
    items = [named(f"{index}-{name}", name) for index, (name, _, _) in enumerate(plan)]
    arrivals = [arrival for _, arrival, _ in plan]
    aborts = {item.id: abort for item, (_, _, abort) in zip(items, plan, strict=True) if abort is not None}
    tokens = tokens_of(engine, items, arrivals=arrivals, aborts=aborts)
    for item, (name, _, abort) in zip(items, plan, strict=True):
        expected = expected_tokens(make_engine, name)
        assert tokens[item.id] == (expected if abort is None else expected[: len(tokens[item.id])])
    assert_only_caches_remain(engine)


def assert_only_caches_remain(engine):
    """Nobody holds a block, every byte is accounted for, and all blocks that are cached can be evicted (they are)."""
    blocks, features, stats = engine._scheduler._blocks, engine._features, engine.stats()
    assert blocks.num_free_blocks == blocks.num_blocks
    assert not blocks._num_holders
    assert not engine._scheduler._promised
    assert set(blocks._idle) == set(blocks._key_of)
    assert stats.prefix_cache_bytes == len(blocks._idle) * engine._block_bytes
    assert stats.prefix_cache_bytes <= stats.kv_cache_tokens * engine._block_bytes // blocks.block_tokens
    assert stats.mm_cache_bytes == sum(entry.num_bytes for entry in features._entries.values())
    assert stats.mm_cache_bytes <= engine._config.feature_cache_bytes
    blocks.free(blocks.allocate(blocks.capacity_tokens))
    assert blocks._free == [(0, blocks.num_blocks)]
    assert engine.stats().prefix_cache_bytes == 0


def test_the_features_outlive_the_keys_and_values(make_engine, tower_calls):
    engine = make_engine()
    first = tokens_of(engine, [chat("a", "What happens?")])["a"]
    assert_only_caches_remain(engine)  # evicts them
    assert engine.stats().prefix_cache_evictions > 0
    assert tokens_of(engine, [chat("b", "What happens?")])["b"] == first
    assert engine.stats().prefix_cache_hits == 0
    assert sum(tower_calls) == 6
    assert (engine.stats().mm_cache_queries, engine.stats().mm_cache_hits) == (12, 6)


def test_switched_off_nothing_is_kept_nor_found(make_engine, tower_calls):
    engine = plain(make_engine)
    for name in "ab":
        outcome = drive(engine, [chat(name, "What happens?")])[name]
        assert outcome.end.usage.cached_tokens == 0
    stats = engine.stats()
    assert stats.num_computed_prompt_tokens == stats.num_prompt_tokens
    assert stats.prefix_cache_queries == stats.prefix_cache_hits == stats.prefix_cache_bytes == 0
    assert (stats.mm_cache_queries, stats.mm_cache_hits, stats.mm_cache_bytes) == (12, 0, 0)
    assert sum(tower_calls) == 12


def test_counters(engine, profile):
    drive(engine, [chat("a", "What happens?")])
    before = engine.stats()
    assert (before.prefix_cache_hits, before.mm_cache_hits, before.mm_cache_evictions) == (0, 0, 0)
    assert before.prefix_cache_queries == before.num_prompt_tokens
    assert before.mm_cache_bytes == 6 * PATCH_BYTES
    outcome = drive(engine, [chat("b", "When?")])["b"]
    after = engine.stats()
    assert after.prefix_cache_hits == outcome.end.usage.cached_tokens > 36
    assert after.prefix_cache_queries == after.num_prompt_tokens
    assert after.num_computed_prompt_tokens == after.num_prompt_tokens - after.prefix_cache_hits
    assert after.prefix_cache_bytes > before.prefix_cache_bytes > 0


def test_a_prefill_that_fails_is_shared_only_as_far_as_it_was_computed(make_engine, monkeypatch):
    expected = tokens_of(plain(make_engine), [chat("b", "What happens?")])["b"]
    engine = make_engine(prefill_chunk_tokens=16)
    run = engine._runner.run

    def failing(rows):
        run(rows)
        if any(row.num_cached_tokens >= 32 for row in rows):
            for cache in (*engine._runner._cache.keys, *engine._runner._cache.values):
                cache[torch.from_numpy(rows[0].table.slots[32:])] = 1000.0  # as if it had stopped in the middle
            raise RuntimeError("bug")

    monkeypatch.setattr(engine._runner, "run", failing)
    assert isinstance(drive(engine, [chat("a", "What happens?")])["a"].end, FailEvent)
    monkeypatch.setattr(engine._runner, "run", run)
    assert tokens_of(engine, [chat("b", "What happens?")])["b"] == expected
    assert_only_caches_remain(engine)


def test_an_aborted_prefill_is_shared_as_far_as_it_was_computed(make_engine, profile):
    expected = tokens_of(plain(make_engine), [chat("b", "What happens?")])["b"]
    engine = make_engine(prefill_chunk_tokens=16, block_tokens=4)
    engine.submit(chat("a", "What happens?"))
    while engine.stats().num_computed_prompt_tokens < 30:
        engine.step()
    done = engine.stats().num_computed_prompt_tokens
    engine.abort("a")
    assert tokens_of(engine, [chat("b", "What happens?")])["b"] == expected
    assert engine.stats().prefix_cache_hits == done // 4 * 4


@pytest.mark.parametrize("where", ["keys and values", "features"])
def test_what_made_a_row_fail_is_not_met_again(where, make_engine, monkeypatch):
    """A fault that shows only in the logits at the end of the prompt, when all of it is cached."""
    expected = tokens_of(plain(make_engine), [chat("b", "When?")])["b"]
    engine = make_engine(prefill_chunk_tokens=16)
    run, encode = engine._runner.run, VisionEncoder.encode

    def spoilt_run(rows):
        logits = run(rows)
        for cache in engine._runner._cache.values:
            cache[torch.from_numpy(rows[0].table.slots[:16])] = float("nan")
        return logits

    def spoilt_encode(self, media, start, stop):
        features = encode(self, media, start, stop)
        return VisualFeatures(features.embeddings * float("nan"), features.deepstack)

    with monkeypatch.context() as patch:
        if where == "features":
            patch.setattr(VisionEncoder, "encode", spoilt_encode)
        else:
            patch.setattr(engine._runner, "run", spoilt_run)
        assert isinstance(drive(engine, [chat("a", "What happens?")])["a"].end, FailEvent)
    assert tokens_of(engine, [chat("b", "When?")])["b"] == expected


def test_a_full_cache_gives_way_to_running_requests(make_engine):
    """Cached blocks count as free: what fits an empty cache fits a full one."""
    engine = make_engine(kv_cache_tokens=160)
    drive(engine, [chat("a", "What happens?")])
    big = request("big", prompt="Tell me more. " * 6, max_tokens=1, ignore_eos=True)
    spare = 160 - drive(make_engine(), [big])["big"].end.usage.prompt_tokens
    outcome = drive(engine, [request("b", prompt="Tell me more. " * 6, max_tokens=spare, ignore_eos=True)])["b"]
    assert outcome.num_tokens == spare
    assert engine.stats().prefix_cache_evictions > 0


def test_a_row_that_waits_for_anothers_prefill_can_be_aborted(engine):
    engine.submit(chat("a", "What happens?"))
    engine.submit(chat("b", "When?"))
    engine.step()
    engine.abort("b")
    assert engine.step()[0].request_id == "b"
    drive(engine)
    assert_only_caches_remain(engine)
