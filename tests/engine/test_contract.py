"""What every engine promises (``tru_vlm/engine/base.py``), on the real model."""

import dataclasses
import json
import re
from collections import Counter

import numpy as np
import pytest
from engine_helpers import drive, image, recorded_tokens, request, video
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tru_vlm.engine.base import FailEvent, FinishEvent, MediaInput, TokenEvent
from tru_vlm.engine.hf.engine import HfEngine
from tru_vlm.errors import ContextLengthError, InvalidRequestError
from tru_vlm.types import MediaPart, Message, TextPart

ENGINES = ["hf", "vllm"]


@pytest.fixture
def hf_engine(make_engine):
    """For what is the hf engine's own promise: which step does what."""
    return make_engine(prefill_chunk_tokens=32, max_batch_size=4)


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.getfixturevalue(f"{request.param}_engine")


REQUESTS = (
    request("video", video(1, 5), max_tokens=6),
    request("image", image(2, 96, 64), prompt="What is it?", max_tokens=8),
    request("text", prompt="Tell me a long story, please.", max_tokens=10),
    request("long", video(3, 12, 64, 96), prompt="When does it begin?", max_tokens=6),
    request("two", video(4, 2), image(5), prompt="Compare.", max_tokens=8),
    request("text2", prompt="Hi", max_tokens=1),
)
ALONE: dict[tuple[str, str], str] = {}


def alone(engine, item):
    name = (engine.description.backend, item.id)
    if name not in ALONE:
        ALONE[name] = drive(engine, [item])[item.id].text
    return ALONE[name]


@pytest.fixture(params=ENGINES)
def engines_by_chunk(request):
    """One engine per prefill chunk size, reused by all of hypothesis' examples: each ends empty."""
    if request.param == "vllm":
        return dict.fromkeys((16, 48, 512), request.getfixturevalue("vllm_engine"))
    make = request.getfixturevalue("make_engine")
    return {chunk: make(prefill_chunk_tokens=chunk, max_batch_size=4) for chunk in (16, 48, 512)}


def pieces_of(engine, **generation):
    """The pieces of a long answer, as they are told."""
    engine.submit(request("a", video(1), max_tokens=24, ignore_eos=True, **generation))
    pieces = []
    while engine.has_work():
        pieces += [event.text for event in engine.step() if isinstance(event, TokenEvent)]
    return pieces


def test_penalties_are_for_what_the_answer_has_said(engine, profile):
    words = (" red", " blue", " white", " circle", " square")
    only = tuple((profile.tokenizer.encode(word)[0], 100.0) for word in words)

    def said(**generation):
        return Counter(re.findall(" [a-z]+", "".join(pieces_of(engine, logit_bias=only, **generation))))

    assert len(said()) < len(words)
    assert set(said(presence_penalty=2.0)) == set(words)
    assert len(said(presence_penalty=-2.0)) == 1
    assert max(said(frequency_penalty=2.0).values()) < max(said(presence_penalty=2.0).values())
    assert len(said(frequency_penalty=-2.0)) == 1


def test_a_bias_forbids_forces_and_must_name_a_token(engine, profile):
    token = profile.tokenizer.encode("red")[0]
    word = profile.tokenizer.decode([token])
    assert set("".join(pieces_of(engine, logit_bias=((token, 100.0),))).split(word)) == {""}
    first = profile.tokenizer.encode(pieces_of(engine)[0])[0]
    assert pieces_of(engine, logit_bias=((first, -100.0),))[0] != pieces_of(engine)[0]
    with pytest.raises(
        InvalidRequestError, match=r"logit_bias: there is no token 900000000; they are 0 to \d+"
    ) as error:
        engine.submit(request("b", logit_bias=((900_000_000, 1.0),)))
    assert error.value.param == "logit_bias"


def test_min_p_of_one_leaves_the_likeliest(engine):
    greedy = pieces_of(engine)
    assert pieces_of(engine, temperature=2.0, min_p=1.0, seed=1) == greedy
    assert pieces_of(engine, temperature=2.0, seed=1) != greedy


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    order=st.permutations(range(len(REQUESTS))),
    arrivals=st.lists(st.integers(0, 12), min_size=len(REQUESTS), max_size=len(REQUESTS)),
    chunk=st.sampled_from([16, 48, 512]),
)
def test_greedy_text_alone_equals_text_in_any_mix(order, arrivals, chunk, engines_by_chunk):
    expected = {item.id: alone(engines_by_chunk[512], item) for item in REQUESTS}
    mixed = drive(engines_by_chunk[chunk], [REQUESTS[i] for i in order], arrivals=arrivals)
    assert {name: outcome.text for name, outcome in mixed.items()} == expected


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    arrivals=st.lists(st.integers(0, 10), min_size=len(REQUESTS), max_size=len(REQUESTS)),
    aborts=st.dictionaries(st.sampled_from([item.id for item in REQUESTS]), st.integers(0, 20), max_size=4),
)
def test_exactly_one_last_event_whatever_is_aborted(arrivals, aborts, engines_by_chunk):
    engine = engines_by_chunk[48]
    outcomes = drive(engine, REQUESTS, arrivals=arrivals, aborts=aborts)  # drive counts the last events
    for name, outcome in outcomes.items():
        if name not in aborts:
            assert outcome.reason in ("stop", "length")
            assert outcome.text == alone(engine, next(item for item in REQUESTS if item.id == name))


def test_running_rows_get_a_token_in_every_step_of_anothers_prefill(hf_engine):
    early = request("early", prompt="Hi", max_tokens=20, ignore_eos=True)
    late = request("late", video(1, 16, 64, 96), max_tokens=1)
    outcomes = drive(hf_engine, [early, late], arrivals=[0, 5])
    assert outcomes["late"].token_steps[0] - 5 >= 3, "the prefill did not take several steps"
    assert np.all(np.diff(outcomes["early"].token_steps) == 1)


def test_a_short_question_does_not_wait_for_a_long_prefill(hf_engine):
    long, short = request("long", video(1, 16, 64, 96), max_tokens=1), request("short", prompt="Hi", max_tokens=2)
    outcomes = drive(hf_engine, [long, short], arrivals=[0, 1])
    assert outcomes["short"].end_step < outcomes["long"].token_steps[0]


def test_max_tokens(engine):
    outcome = drive(engine, [request("a", video(1), max_tokens=7, ignore_eos=True)])["a"]
    assert (outcome.num_tokens, outcome.reason) == (7, "length")
    assert outcome.end.usage.completion_tokens == 7
    assert outcome.end.usage.video_tokens == 2 * 4
    assert outcome.end.usage.prompt_tokens > 8


def test_an_answer_that_ends_goes_on_with_ignore_eos(engine):
    outcomes = drive(engine, [request("a", video(1, 5)), request("b", video(1, 5), ignore_eos=True)])
    assert outcomes["a"].reason == "stop"
    assert outcomes["a"].num_tokens < 12
    assert (outcomes["b"].reason, outcomes["b"].num_tokens) == ("length", 12)
    assert outcomes["b"].text.startswith(outcomes["a"].text)


def test_the_end_token_ends_and_ignore_eos_goes_on(model, profile, hf_engine):
    engine, tokens = hf_engine, recorded_tokens(hf_engine)["a"]
    drive(engine, [request("a", video(1), max_tokens=12, ignore_eos=True)])
    ending = dataclasses.replace(profile, eos_token_ids=frozenset({tokens[3]}))  # as if the answer ended there
    engine = HfEngine(model, ending, engine._config)
    ignoring = request("c", video(1), max_tokens=12, ignore_eos=True)
    outcomes = drive(engine, [request("b", video(1), max_tokens=12), ignoring])
    assert (outcomes["b"].reason, outcomes["b"].num_tokens) == ("stop", tokens.index(tokens[3]) + 1)
    assert (outcomes["c"].reason, outcomes["c"].num_tokens) == ("length", 12)


def test_stop_string_across_tokens_ends_and_is_not_part_of_the_text(engine):
    # Hot sampling with a seed: a long text of many tokens, as hot as every engine takes it.
    wild = {"prompt": "Hello", "max_tokens": 24, "ignore_eos": True, "temperature": 2.0, "seed": 1}
    full = drive(engine, [request("a", **wild)])["a"].text
    stop = full[5:11]
    assert len(stop) == 6
    outcomes = drive(engine, [request("a", **wild, stop=("zzzz", stop))])
    assert outcomes["a"].text == full[: full.index(stop)]
    assert outcomes["a"].reason == "stop"


def test_a_seed_makes_sampling_reproducible_alone_and_in_a_mix(engine):
    sampled = {"temperature": 2.0, "top_p": 0.95, "top_k": 50, "max_tokens": 16, "ignore_eos": True}
    one = drive(engine, [request("a", video(1), seed=7, **sampled)])["a"].text
    crowd = [request("b", seed=8, **sampled), request("c", video(2)), request("d", image(1), seed=7, **sampled)]
    mixed = drive(engine, [*crowd, request("a", video(1), seed=7, **sampled)], arrivals=[0, 0, 2, 3])
    assert mixed["a"].text == one
    assert drive(engine, [request("a", video(1), seed=8, **sampled)])["a"].text != one


@pytest.mark.parametrize("steps", [0, 1, 2, 4, 12])  # in the queue, with frames and prompt half done, decoding
def test_abort_in_every_stage_frees_the_memory_at_once(steps, make_engine):
    engine = make_engine(max_batch_size=1, prefill_chunk_tokens=16)
    engine.submit(request("a", video(1, 12), max_tokens=30, ignore_eos=True))
    engine.submit(request("waiting", prompt="Hi", max_tokens=4, ignore_eos=True))
    for _ in range(steps):
        engine.step()
    assert (engine.stats().kv_cache_used_tokens > 0) == (steps > 0)
    engine.abort("a")
    assert engine.stats().kv_cache_used_tokens == 0
    assert (engine.stats().num_running, engine.stats().num_waiting) == (0, 1)
    first = engine.step()[0]
    assert isinstance(first, FinishEvent)
    assert (first.request_id, first.finish_reason) == ("a", "abort")
    assert drive(engine)["waiting"].reason == "length"


@pytest.mark.parametrize("steps", [0, 1, 3, 12])
def test_an_abort_is_told_at_the_next_step_and_others_go_on(engine, steps):
    engine.submit(request("a", video(1, 12), max_tokens=2000, ignore_eos=True))
    engine.submit(request("b", prompt="Hi", max_tokens=40, ignore_eos=True))
    events = [event for _ in range(steps) for event in engine.step()]
    engine.abort("a")
    events += engine.step()
    (end,) = [event for event in events if isinstance(event, FinishEvent)]
    assert (end.request_id, end.finish_reason) == ("a", "abort")
    told = sum(event.num_tokens for event in events if isinstance(event, TokenEvent) and event.request_id == "a")
    assert end.usage.completion_tokens == told
    assert drive(engine)["b"].reason == "length"  # drive holds that nothing comes after an end
    assert drive(engine, [request("a", prompt="Hi", max_tokens=3, ignore_eos=True)])["a"].num_tokens == 3


def test_a_json_schema_is_followed(engine):
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}}}
    closed = schema | {"required": ["a", "b"], "additionalProperties": False}
    # What a schema brings along does not count.
    text = json.dumps(closed | {"x-guidance": {"whitespace_flexible": True, "item_separator": ";"}})
    outcome = drive(engine, [request("a", video(1), json_schema=text, max_tokens=40)])["a"]
    assert outcome.reason == "stop"
    assert outcome.text == json.dumps(json.loads(outcome.text))
    assert set(json.loads(outcome.text)) == {"a", "b"}


@pytest.mark.parametrize("schema", ['{"type": "nonsense"}', '{"not": {}}', "[1]"])
def test_a_schema_that_cannot_be_followed_is_refused(engine, schema):
    with pytest.raises(InvalidRequestError, match="its schema cannot be followed") as caught:
        engine.submit(request("a", json_schema=schema))
    assert (caught.value.code, caught.value.param) == ("invalid_schema", "response_format")
    assert not engine.has_work()


def test_a_second_question_on_a_video_computes_only_its_own_text(engine):
    clip = video(77, 16, 64, 96)
    first = drive(engine, [request("a", clip, prompt="What happens?")])["a"]
    before = engine.stats()
    second = drive(engine, [request("b", clip, prompt="Which colour?")])["b"]
    after = engine.stats()
    assert first.end.usage.cached_tokens == 0
    assert second.end.usage.cached_tokens > second.end.usage.prompt_tokens / 2
    assert after.num_computed_prompt_tokens - before.num_computed_prompt_tokens == (
        second.end.usage.prompt_tokens - second.end.usage.cached_tokens
    )
    assert after.prefix_cache_hits - before.prefix_cache_hits == second.end.usage.cached_tokens


def test_abort_of_an_unknown_or_finished_id_does_nothing(engine):
    engine.abort("nobody")
    drive(engine, [request("a", max_tokens=1)])
    engine.abort("a")
    assert not engine.has_work()
    assert engine.step() == []


def test_a_request_that_can_never_fit_is_refused_with_the_numbers(make_engine):
    engine = make_engine(kv_cache_tokens=128)
    with pytest.raises(ContextLengthError, match=r"max_tokens is 500.*room for 128") as caught:
        engine.submit(request("a", video(1), max_tokens=500))
    assert "8 of them visual" in caught.value.message
    assert not engine.has_work()
    with pytest.raises(ContextLengthError, match="room for 32768"):
        make_engine().submit(request("a", max_tokens=32768))


def test_every_engine_refuses_with_the_same_words(engine, make_engine):
    item = request("a", video(1), max_tokens=8190)
    with pytest.raises(ContextLengthError, match="The KV cache has room for 8192") as caught:
        engine.submit(item)
    with pytest.raises(ContextLengthError) as expected:
        make_engine(kv_cache_tokens=8192).submit(item)
    assert caught.value.message == expected.value.message
    assert not engine.has_work()


def test_what_does_not_fit_now_waits_in_order(make_engine):
    engine = make_engine(kv_cache_tokens=64, max_batch_size=4)
    items = [request(name, prompt="Hello", max_tokens=24, ignore_eos=True) for name in "abc"]
    outcomes = drive(engine, items)
    assert {outcome.num_tokens for outcome in outcomes.values()} == {24}
    assert outcomes["a"].end_step < outcomes["b"].token_steps[0]
    assert outcomes["b"].end_step < outcomes["c"].token_steps[0]
    together = drive(make_engine(kv_cache_tokens=256), items)  # it is the cache that made them wait
    assert together["a"].token_steps == together["b"].token_steps == together["c"].token_steps


class Broken:
    """Stands for frames whose file has gone bad under the engine."""

    def __init__(self, shape):
        self.shape = shape

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, item):
        raise OSError("stale file handle /secret/path")


def test_a_bad_row_fails_alone(engine):
    good = video(1)
    bad = MediaInput("video", Broken(good.frames.shape), "bad", good.timestamps_seconds)
    other = request("other", prompt="Hi", max_tokens=2, ignore_eos=True)
    outcomes = drive(engine, [request("good", good), request("bad", bad), other])
    assert isinstance(outcomes["bad"].end, FailEvent)
    assert outcomes["bad"].end.error.status == 500
    assert "secret" not in outcomes["bad"].end.error.message
    assert outcomes["good"].text == drive(engine, [request("good", good)])["good"].text
    assert outcomes["other"].reason == "length"


def test_messages_must_refer_to_each_medium_once(engine):
    item = request("a", video(1))
    twice = (Message("user", (MediaPart(0), MediaPart(0), TextPart("?"))),)
    for messages in (twice, (Message("user", (TextPart("?"),)),), (Message("user", (MediaPart(1),)),)):
        with pytest.raises(InvalidRequestError, match="each of the 1 media once"):
            engine.submit(dataclasses.replace(item, messages=messages))
    assert not engine.has_work()


def test_an_id_in_use_is_refused_and_free_again_afterwards(engine):
    engine.submit(request("a"))
    with pytest.raises(InvalidRequestError, match="in use"):
        engine.submit(request("a"))
    while engine.has_work():
        engine.step()
    assert drive(engine, [request("a")])["a"].num_tokens > 0


def test_timings_and_counters(engine):
    before = engine.stats()
    outcomes = drive(engine, [request("a", video(1)), request("b", prompt="Hi")])
    for outcome in outcomes.values():
        timings = outcome.end.timings
        assert timings.queue >= 0
        assert timings.preprocess > 0
        assert timings.prefill > 0
    stats = engine.stats()
    num_generated = sum(outcome.num_tokens for outcome in outcomes.values())
    assert stats.num_generated_tokens - before.num_generated_tokens == num_generated
    num_prompt = sum(outcome.end.usage.prompt_tokens for outcome in outcomes.values())
    assert stats.num_prompt_tokens - before.num_prompt_tokens == num_prompt
    assert stats.num_steps > before.num_steps
    assert stats.device_memory_bytes > 0
    assert engine.description.attention == {"hf": "sdpa", "vllm": "CPU_ATTN"}[engine.description.backend]
    assert engine.description.num_parameters > 1_000_000
