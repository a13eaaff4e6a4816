"""Times are found in streamed text, however it is cut, and no character is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tru_vlm.api.routes.time_links import TextPiece, TimeFinder, split_times

_ALPHABET = "<>0123456789.: seconds\nA\u2013"


def _stream(chunks: list[str]) -> list[TextPiece]:
    finder = TimeFinder()
    pieces = [piece for chunk in chunks for piece in finder.feed(chunk)]
    return pieces + finder.finish()


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
    assert _times(_stream(list(text))) == times


@given(st.lists(st.text(_ALPHABET, max_size=12), max_size=12))
def test_no_character_is_lost(chunks: list[str]) -> None:
    assert "".join(piece.text for piece in _stream(chunks)) == "".join(chunks)


@given(st.text(_ALPHABET, max_size=60))
def test_little_is_held_back(text: str) -> None:
    finder = TimeFinder()
    shown = "".join(piece.text for character in text for piece in finder.feed(character))
    assert len(text) - len(shown) <= 24
