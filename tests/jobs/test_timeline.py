"""Spans cover the video, and captions become a timeline."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tru_vlm.jobs.timeline import Entry, Span, clock, merge, num_spans, question, split


@settings(deadline=None)  # a busy machine is no failure
@given(start=st.floats(0, 1000), length=st.floats(0.1, 3000), span=st.floats(1, 600), overlap_share=st.floats(0, 0.49))
def test_spans_cover_all_in_order_and_overlap_as_asked(
    start: float, length: float, span: float, overlap_share: float
) -> None:
    overlap = span * overlap_share
    spans = split(start, start + length, span_seconds=span, overlap_seconds=overlap)
    assert spans[0].start == pytest.approx(start, abs=1e-3)
    assert spans[-1].end == start + length
    for before, after in itertools.pairwise(spans):
        assert before.end - after.start == pytest.approx(overlap, abs=2e-3)
    assert all(s.start < s.end <= s.start + span * 1.26 for s in spans)
    assert abs(num_spans(start, start + length, span_seconds=span, overlap_seconds=overlap) - len(spans)) <= 1


def test_a_short_rest_belongs_to_the_span_before_it() -> None:
    assert split(0, 12, span_seconds=10) == [Span(0, 12)]
    assert split(0, 13, span_seconds=10) == [Span(0, 10), Span(10, 13)]


def test_neighbours_that_say_the_same_are_one_entry() -> None:
    captions = [Entry(0, 10, "a "), Entry(8, 20, "a"), Entry(20, 30, "b"), Entry(40, 50, "b")]
    assert merge(captions) == [Entry(0, 20, "a"), Entry(20, 30, "b"), Entry(40, 50, "b")]


def test_the_question_has_the_timeline_in_it() -> None:
    text = question([Entry(0, 61.5, "a"), Entry(3600, 3661, "b")], "Why?")
    assert "0:00 to 1:01.5: a\n1:00:00 to 1:01:01: b" in text
    assert text.endswith("Why?")
    assert clock(59.96) == "1:00"
