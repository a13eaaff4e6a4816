"""Times are found in text, and no character is lost; moments are those that lie in the video."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tru_vlm.api.pipeline.moments import TextPiece, find_moments, split_times
from tru_vlm.types import Moment, VideoInfo

_ALPHABET = "<>0123456789.: seconds\nA\u2013"


def _times(pieces: list[TextPiece]) -> list[float]:
    return [piece.seconds for piece in pieces if piece.seconds is not None]


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("Then, at <4.2 seconds>, it stops.", [4.2]),
        ("<12 seconds><0.5s>", [12.0, 0.5]),
        ("from 0:12 to 1:02:03", [12.0, 3723.0]),
        ("00:12\u201300:19.5", [12.0, 19.5]),
        ("a ratio of 16:9, at 10:75, 1.5:20, 4 seconds, <b>, <4.2 metres>", []),
    ],
)
def test_times(text: str, times: list[float]) -> None:
    assert _times(split_times(text)) == times


@given(st.text(_ALPHABET, max_size=120))
def test_no_character_is_lost(text: str) -> None:
    assert "".join(piece.text for piece in split_times(text)) == text


def _video(seconds: float | None) -> VideoInfo:
    return VideoInfo(
        kind="video",
        num_frames=4,
        height=64,
        width=64,
        source_height=64,
        source_width=64,
        video_tokens=8,
        decoder="pyav",
        duration_seconds=seconds,
    )


def _moments(text: str, seconds: float | None = 60.0) -> list[tuple[float, float | None, str]]:
    return [(moment.start_seconds, moment.end_seconds, moment.text) for moment in find_moments(text, _video(seconds))]


def test_moments_are_times_and_spans_in_the_answers_order() -> None:
    text = (
        "It starts at <4.2 seconds>. From 0:12 to 0:19 it rests; 00:20\u201300:21.5 it turns.\n"
        "At 0:03 and 0:05 it blinks."
    )
    assert _moments(text) == [
        (4.2, None, "<4.2 seconds>"),
        (12.0, 19.0, "0:12 to 0:19"),
        (20.0, 21.5, "00:20\u201300:21.5"),
        (3.0, None, "0:03"),
        (5.0, None, "0:05"),
    ]


def test_a_moment_has_the_sentence_that_names_it() -> None:
    text = "A circle rests. Then, at <4.2 seconds>, a cross moves. At 0:05\nnothing"
    assert [moment.sentence for moment in find_moments(text, _video(9))] == [
        "Then, at <4.2 seconds>, a cross moves.",
        "At 0:05",
    ]


def test_what_is_not_in_the_video_is_no_moment() -> None:
    assert _moments("at 0:59 and 1:00.4 and 1:01") == [(59.0, None, "0:59"), (60.0, None, "1:00.4")]
    assert _moments("0:10-2:00") == []
    assert _moments("0:19 to 0:12") == [(19.0, None, "0:19"), (12.0, None, "0:12")]  # no span backwards
    assert _moments("at 0:10", None) == []
    assert find_moments("at 0:10", None) == ()


@given(st.text(_ALPHABET + "-to", max_size=60))
def test_every_moment_is_named_in_its_sentence(text: str) -> None:
    for moment in find_moments(text, _video(50.0)):
        assert isinstance(moment, Moment)
        assert moment.text in text
        assert 0 <= moment.start_seconds <= 50.0
        assert moment.end_seconds is None or moment.start_seconds <= moment.end_seconds <= 50.0
