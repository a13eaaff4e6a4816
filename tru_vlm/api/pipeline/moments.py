"""Finds times in an answer's text, such as ``<4.2 seconds>`` or ``0:12–0:19``: to show them as links, and as moments.
It knows no HTML.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tru_vlm.types import Moment, VideoInfo

_TIME = re.compile(
    r"<(?P<stamp>\d{1,6}(?:\.\d{1,3})?) ?(?:seconds|second|sec|s)>"
    r"|(?<![\d:.])(?P<clock>(?:\d{1,3}:)?[0-5]?\d:[0-5]\d(?:\.\d{1,3})?)(?![\d:])"
)
UNFINISHED_TIME = re.compile(r"(?:<[\d.]{0,10}(?: ?[second]{0,7})?|(?<![\d:.])\d[\d:.]{0,12})\Z")
"""What may still become a time when more text comes.  Bounded, so that text is never held back for long."""
_BETWEEN = re.compile(r"\s*(?:[-\u2012-\u2015]|to|until|till)\s*", re.IGNORECASE)
"""What makes a span of the times on both of its sides.  "And" does not: two events are named so more often."""
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n")
_TOLERANCE_SECONDS = 0.5
"""A time that is so little past the end is the end, rounded."""


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A piece of an answer; ``seconds`` is set if it is a time in the video."""

    text: str
    seconds: float | None = None


def split_times(text: str) -> list[TextPiece]:
    """``text`` in pieces: plain ones, and times."""
    pieces: list[TextPiece] = []
    end = 0
    for match in _TIME.finditer(text):
        if match.start() > end:
            pieces.append(TextPiece(text[end : match.start()]))
        pieces.append(TextPiece(match.group(), _seconds(match)))
        end = match.end()
    if end < len(text):
        pieces.append(TextPiece(text[end:]))
    return pieces


def _seconds(match: re.Match[str]) -> float:
    if match["stamp"]:
        return float(match["stamp"])
    total = 0.0
    for part in match["clock"].split(":"):
        total = total * 60 + float(part)
    return total


def find_moments(text: str, video: VideoInfo | None) -> tuple[Moment, ...]:
    """The times and spans that an answer names, in its order; those that are not in the video are left out.

    Args:
        text: the whole answer.
        video: what it is about; without a video that has a length there are none.
    """
    if video is None or not video.duration_seconds:
        return ()
    pieces = split_times(text)
    found: list[Moment] = []
    offset = index = 0
    while index < len(pieces):
        length = _span_length(pieces[index:])
        named = "".join(piece.text for piece in pieces[index : index + length])
        moment = _moment(pieces[index], pieces[index + length - 1], video.duration_seconds)
        if moment is not None:
            found.append(Moment(*moment, text=named, sentence=_sentence_around(text, offset, offset + len(named))))
        offset += len(named)
        index += length
    return tuple(found)


def _span_length(pieces: Sequence[TextPiece]) -> int:
    """3 if the pieces begin with a span, else 1."""
    if len(pieces) < 3 or pieces[0].seconds is None or pieces[2].seconds is None:  # noqa: PLR2004 - a time, what is between, a time
        return 1
    return 3 if _BETWEEN.fullmatch(pieces[1].text) and pieces[0].seconds < pieces[2].seconds else 1


def _moment(first: TextPiece, last: TextPiece, duration_seconds: float) -> tuple[float, float | None] | None:
    """Its start and end, within the video."""
    if first.seconds is None or last.seconds is None or last.seconds > duration_seconds + _TOLERANCE_SECONDS:
        return None
    start, end = (min(seconds, duration_seconds) for seconds in (first.seconds, last.seconds))
    return start, end if last is not first else None


def _sentence_around(text: str, start: int, end: int) -> str:
    before = [match.end() for match in _SENTENCE_END.finditer(text, 0, start)]
    after = _SENTENCE_END.search(text, end)
    return text[before[-1] if before else 0 : after.end() if after else len(text)].strip()
