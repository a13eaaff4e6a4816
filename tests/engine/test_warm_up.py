"""Before the first request an engine has answered one of its own, through every stage, and nothing tells of it."""

from __future__ import annotations

import dataclasses

import pytest
from engine_helpers import drive, request, video
from support import require_vllm

from tru_vlm.engine.hf.config import EngineConfig
from tru_vlm.engine.hf.engine import HfEngine
from tru_vlm.engine.hf.loading import load_model
from tru_vlm.errors import InternalError


def without_memory(stats):
    return dataclasses.replace(stats, device_memory_bytes=0)


def test_it_runs_every_stage_and_leaves_nothing(make_engine, monkeypatch):
    engine = make_engine()
    before = without_memory(engine.stats())
    stages = []
    encode, run = engine._encoder.encode, engine._runner.run
    monkeypatch.setattr(engine._encoder, "encode", lambda *args: stages.append("vision") or encode(*args))
    monkeypatch.setattr(
        engine._runner,
        "run",
        lambda rows: stages.append("decode" if rows[0].num_tokens == 1 else "prefill") or run(rows),
    )
    engine.warm_up()
    assert stages == ["vision", "prefill", "decode", "decode", "decode"]
    assert without_memory(engine.stats()) == before
    assert not engine.has_work()
    # The same frames are looked at anew, and the answer is what it is without a warm-up.
    question = request("a", video(1), max_tokens=6)
    assert drive(engine, [question])["a"].text == drive(make_engine(), [question])["a"].text
    assert engine.stats().mm_cache_hits == engine.stats().prefix_cache_hits == 0


def test_a_cache_too_small_for_it_is_no_failure(make_engine):
    engine = make_engine(kv_cache_tokens=16)
    engine.warm_up()
    assert engine.stats().num_steps == 0


def test_a_model_that_cannot_answer_is_told(make_engine, monkeypatch):
    engine = make_engine()

    def fails(rows):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(engine._runner, "run", fails)
    with pytest.raises(InternalError, match="The model loads, and answers nothing"):
        engine.warm_up()


def test_loading_tells_how_far_it_is(profile, checkpoint):
    told: list[float] = []
    model = load_model(profile, EngineConfig(checkpoint), told.append)
    assert told[-1] == 1.0
    assert told == sorted(told)
    assert len(told) > 10
    assert isinstance(HfEngine(model, profile, EngineConfig(checkpoint, kv_cache_tokens=1024)), HfEngine)


def test_vllm_leaves_nothing_either(vllm_engine):
    require_vllm()
    engine = vllm_engine
    drive(engine, [request("before", video(7), max_tokens=3)])
    engine.warm_up()
    stats = without_memory(engine.stats())
    assert stats == dataclasses.replace(
        stats,
        num_steps=0,
        num_prompt_tokens=0,
        num_generated_tokens=0,
        num_computed_prompt_tokens=0,
        prefix_cache_queries=0,
        prefix_cache_hits=0,
        mm_cache_queries=0,
        mm_cache_hits=0,
        kv_cache_used_tokens=0,
    )
    drive(engine, [request("again", video(7), max_tokens=3)])  # what it knew is forgotten, too
    assert engine.stats().mm_cache_hits == engine.stats().prefix_cache_hits == 0
    assert engine.stats().mm_cache_queries > 0
