"""Faults inside a step hit one row, and other layouts of blocks and rows give the same answers."""

import numpy as np
import pytest
import torch
from engine_helpers import drive, request, video

from tru_vlm.engine.base import FailEvent


def failing_runner(engine, monkeypatch, is_bad, error):
    """The model raises whenever a bad row is in the step."""
    run = engine._runner.run

    def raising(rows):
        if any(is_bad(row) for row in rows):
            raise error
        return run(rows)

    monkeypatch.setattr(engine._runner, "run", raising)


ITEMS = (request("a", video(1), max_tokens=5), request("b", prompt="Hi there", max_tokens=5))


@pytest.mark.parametrize(
    ("error", "code"),
    [(torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"), (RuntimeError("bug"), "internal_error")],
)
def test_only_the_offender_fails_and_the_others_have_their_own_answers(make_engine, monkeypatch, error, code):
    expected = {name: outcome.text for name, outcome in drive(make_engine(), ITEMS).items()}
    engine = make_engine()
    failing_runner(engine, monkeypatch, lambda row: row.num_tokens > 40, error)
    big = request("big", video(3, 12, 64, 96))
    outcomes = drive(engine, [ITEMS[0], big, ITEMS[1]])
    assert isinstance(outcomes["big"].end, FailEvent)
    assert outcomes["big"].reason == code
    assert {name: outcomes[name].text for name in expected} == expected


def test_non_finite_logits_fail_their_row(engine, monkeypatch):
    run = engine._runner.run

    def poisoned(rows):
        logits = run(rows)
        logits[0] = float("nan")
        return logits

    monkeypatch.setattr(engine._runner, "run", poisoned)
    outcomes = drive(engine, [request("a", max_tokens=1), request("b", max_tokens=1, ignore_eos=True)])
    assert isinstance(outcomes["a"].end, FailEvent)
    assert outcomes["b"].reason == "length"


def test_scattered_blocks_give_the_same_answers(make_engine):
    expected = {name: outcome.text for name, outcome in drive(make_engine(prefill_chunk_tokens=16), ITEMS).items()}
    engine = make_engine(prefill_chunk_tokens=16)
    blocks = engine._scheduler._blocks
    blocks._free = [(block, 1) for block in range(blocks.num_blocks - 1, 0, -2)]  # no two of them are neighbours
    for item in ITEMS:
        engine.submit(item)
    texts = {item.id: "" for item in ITEMS}
    while engine.has_work():
        for event in engine.step():
            texts[event.request_id] += getattr(event, "text", "")
    assert texts == expected


def test_packed_and_row_by_row_attention_agree(make_engine, monkeypatch):
    """The layout that flash-attn gets, run through a plain implementation of its kernel."""
    expected = {name: outcome.text for name, outcome in drive(make_engine(prefill_chunk_tokens=16), ITEMS).items()}
    monkeypatch.setitem(__import__("sys").modules, "flash_attn", FlashAttn)
    engine = make_engine(prefill_chunk_tokens=16)
    engine._runner._kernel = "flash_attention_2"
    FlashAttn.calls = 0
    assert {name: outcome.text for name, outcome in drive(engine, ITEMS).items()} == expected
    assert FlashAttn.calls > 0


class FlashAttn:
    calls = 0

    @classmethod
    def flash_attn_varlen_func(
        cls, q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal
    ):
        cls.calls += 1
        assert causal
        assert max_seqlen_q == int(np.diff(cu_seqlens_q).max())
        assert max_seqlen_k == int(np.diff(cu_seqlens_k).max())
        outputs = []
        bounds = zip(cu_seqlens_q[:-1], cu_seqlens_q[1:], cu_seqlens_k[:-1], cu_seqlens_k[1:], strict=True)
        for q0, q1, k0, k1 in bounds:
            n, m = int(q1 - q0), int(k1 - k0)
            mask = torch.ones(n, m, dtype=torch.bool).tril(m - n)
            part = [tensor.transpose(0, 1)[None] for tensor in (q[q0:q1], k[k0:k1], v[k0:k1])]
            out = torch.nn.functional.scaled_dot_product_attention(
                *part, attn_mask=mask, scale=softmax_scale, enable_gqa=True
            )
            outputs.append(out[0].transpose(0, 1))
        return torch.cat(outputs)
