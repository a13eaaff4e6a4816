"""Drafts come from what was said before, cost little where nothing repeats, and never change an answer."""

import itertools

import pytest
from engine_helpers import drive, request, video
from hypothesis import given, settings
from hypothesis import strategies as st

from tru_vlm.engine.prompt_lookup import MAX_PAUSE, MAX_PROMPT_TOKENS, NGRAM_SIZES, PromptLookup

REPEATING = "Describe the video second by second."


def test_it_goes_on_as_it_did_the_last_time():
    lookup = PromptLookup([1, 2, 3, 4, 1, 2, 9], 8)
    assert lookup.draft(8) == [], "nothing ever followed 2, 9"
    lookup.add(1)
    assert lookup.draft(8) == []
    lookup.add(2)
    assert lookup.draft(8) == [9, 1]
    lookup.learn(2, 2)
    assert lookup.draft(8) == [9, 1, 2, 9], "a short memory is repeated"
    assert lookup.draft(1) == [9]
    assert lookup.draft(0) == []


def test_a_longer_match_comes_before_a_later_one():
    assert PromptLookup([7, 1, 2, 5, 8, 1, 2, 6, 7, 1, 2], 2).draft(1) == [5]


def test_of_a_long_prompt_the_end_is_remembered():
    begin, end = [1, 2, 3], [5, 6, 7]
    prompt = [*begin, *[0] * MAX_PROMPT_TOKENS, *end, 9]
    assert PromptLookup([*prompt, 1, 2], 4).draft(1) == []
    assert PromptLookup([*prompt, 5, 6], 4).draft(1) == [7]


def test_drafts_grow_with_success_and_pause_after_failure():
    lookup = PromptLookup([1, 2] * 20, 8)
    lengths = []
    for _ in range(4):
        lengths.append(len(lookup.draft(99)))
        lookup.learn(lengths[-1], lengths[-1])
    assert lengths == [2, 4, 8, 8]
    lookup.learn(8, 3)
    assert len(lookup.draft(99)) == 4, "as many as were right, and one"
    pauses = []
    for _ in range(9):
        lookup.learn(4, 0)
        pauses.append(
            sum(1 for _ in itertools.takewhile(lambda draft: not draft, iter(lambda: lookup.draft(99), None)))
        )
    assert pauses == [0, 2, 6, 14, 30, 62, MAX_PAUSE, MAX_PAUSE, MAX_PAUSE]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 9))
def test_what_is_drafted_has_followed_the_same_tokens_before(tokens, limit):
    draft = PromptLookup(tokens, 9).draft(limit)
    told = [*tokens, *draft]
    size = next((n for n in NGRAM_SIZES if any(tokens[i : i + n] == tokens[-n:] for i in range(len(tokens) - n))), None)
    assert bool(draft) is (size is not None)
    if draft:
        starts = [i for i in range(len(tokens) - size) if tokens[i : i + size] == tokens[-size:]]
        begin = starts[-1] + size
        assert draft == told[begin : begin + len(draft)]


CLIPS = [video(seed, 10, 64, 96) for seed in range(3)]


def requests(**common):
    """Answers that repeat themselves and others, by all kinds of rules, two of them about one video."""
    kinds = [
        {},
        {"temperature": 0.8, "seed": 7},
        {"temperature": 1.2, "top_p": 0.9, "seed": 8},
        {"repetition_penalty": 1.1},
        {"logit_bias": ((40, 1.5),)},
        {"temperature": 0.5, "frequency_penalty": 0.4, "seed": 9},
    ]
    return [
        request(
            f"r{index}", CLIPS[index % 3], prompt=REPEATING, **({"max_tokens": 40, "ignore_eos": True} | kind | common)
        )
        for index, kind in enumerate(kinds)
    ]


def texts(engine, items, arrivals=None):
    return {
        name: (outcome.text, outcome.num_tokens, outcome.reason)
        for name, outcome in drive(engine, items, arrivals=arrivals).items()
    }


@pytest.mark.parametrize("batched", [False, True], ids=["row by row", "in fixed shapes"])
@pytest.mark.parametrize("num_tokens", [1, 5, 16])
def test_answers_are_the_same_with_and_without_drafts(make_engine, num_tokens, batched):
    plain = make_engine(num_speculative_tokens=0)
    expected = texts(plain, requests())
    assert plain.stats().num_draft_tokens == 0
    engine = make_engine(num_speculative_tokens=num_tokens, batched_decode=batched, max_batch_size=4)
    for arrivals in ([0] * 6, [0, 3, 4, 9, 11, 30]):
        assert texts(engine, requests(), arrivals) == expected
    stats = engine.stats()
    assert 0 < stats.num_accepted_draft_tokens < stats.num_draft_tokens
    assert stats.num_generated_tokens == 2 * plain.stats().num_generated_tokens


def test_an_answer_that_repeats_itself_takes_fewer_steps(make_engine):
    item = request("a", CLIPS[0], prompt=REPEATING, max_tokens=64, ignore_eos=True)
    nums_steps = []
    for num_tokens in (0, 5):
        engine = make_engine(num_speculative_tokens=num_tokens)
        outcome = drive(engine, [item])["a"]
        assert outcome.num_tokens == 64
        nums_steps.append(engine.stats().num_steps)
    assert nums_steps[1] < 0.6 * nums_steps[0]


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13, 21])
def test_an_answer_ends_where_it_must_within_a_draft(make_engine, length):
    """At its length, at a stop string and at the end of turn, whatever is drafted behind it."""
    plain, engine = make_engine(num_speculative_tokens=0), make_engine(num_speculative_tokens=8)
    whole = texts(plain, requests(max_tokens=60, ignore_eos=False)[:1])["r0"][0]
    stop = (whole[20 + length : 23 + length],)
    for common in ({"max_tokens": length}, {"stop": stop}, {"max_tokens": 60, "ignore_eos": False}):
        items = requests(**common)[:3]
        assert texts(engine, items) == texts(plain, items)


def test_no_draft_goes_beyond_the_answers_end(make_engine, monkeypatch):
    """There is room for the whole answer, and for no more."""
    engine = make_engine(num_speculative_tokens=16)
    run, ends = engine._runner.run, []

    def watching(rows):
        ends.extend(row.num_cached_tokens + row.num_tokens for row in rows)
        return run(rows)

    monkeypatch.setattr(engine._runner, "run", watching)
    outcome = drive(engine, [request("a", CLIPS[0], prompt=REPEATING, max_tokens=40, ignore_eos=True)])["a"]
    assert max(ends) == outcome.end.usage.prompt_tokens + 39, "the last token is told, and not computed"


def test_what_a_draft_left_in_the_cache_is_never_found(make_engine):
    """A second turn finds the first one's tokens, and answers as if nothing had been cached."""
    engine, plain = make_engine(num_speculative_tokens=8), make_engine(num_speculative_tokens=0, prefix_cache=False)
    first = request("a", CLIPS[1], prompt=REPEATING, max_tokens=50, ignore_eos=True)
    answer = drive(engine, [first])["a"].text
    assert engine.stats().num_accepted_draft_tokens < engine.stats().num_draft_tokens
    hits = engine.stats().prefix_cache_hits
    again = request("b", CLIPS[1], prompt=f"{REPEATING} {answer}", max_tokens=30)
    longer = request("c", CLIPS[1], prompt=REPEATING, max_tokens=70, ignore_eos=True)
    for item in (again, longer):
        assert texts(engine, [item]) == texts(plain, [item])
    assert engine.stats().prefix_cache_hits > hits


def test_a_row_without_a_next_token_fails_alone_among_drafts(make_engine, monkeypatch):
    """Logits that are not finite behind a draft's second token: the answer goes on until there."""
    engine = make_engine(num_speculative_tokens=4)
    run, spoilt = engine._runner.run, []

    def spoiling(rows):
        logits = run(rows)
        if logits is not None and len(rows) == 2 and not spoilt and rows[0].num_logits > 2:
            spoilt.append(rows[0].num_logits)
            logits[1] = float("nan")
        return logits

    monkeypatch.setattr(engine._runner, "run", spoiling)
    items = [
        request(name, clip, prompt=REPEATING, max_tokens=40, ignore_eos=True)
        for name, clip in zip("ab", CLIPS, strict=False)
    ]
    outcomes = drive(engine, items)
    assert spoilt
    assert [outcomes[name].reason for name in "ab"] == ["internal_error", "length"]


def test_rules_that_depend_on_the_last_token_draft_nothing(make_engine):
    engine = make_engine(num_speculative_tokens=5)
    for rules in ({"repetition_penalty": 1.2}, {"presence_penalty": 0.1}, {"frequency_penalty": 0.1}):
        drive(engine, [request("a", CLIPS[0], prompt=REPEATING, max_tokens=40, ignore_eos=True, **rules)])
    schema = '{"type": "array", "items": {"enum": ["ab"]}, "minItems": 6}'
    drive(engine, [request("a", CLIPS[0], max_tokens=60, json_schema=schema)])
    assert engine.stats().num_draft_tokens == 0
