"""Finds times in an answer's text while it streams in, such as ``<4.2 seconds>`` or ``0:12``.  It knows no HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TIME = re.compile(
    r"<(?P<stamp>\d{1,6}(?:\.\d{1,3})?) ?(?:seconds|second|sec|s)>"
    r"|(?<![\d:.])(?P<clock>(?:\d{1,3}:)?[0-5]?\d:[0-5]\d(?:\.\d{1,3})?)(?![\d:])"
)
# What may still become a time when more text comes. Bounded, so that text is never held back for long.
_UNFINISHED = re.compile(r"(?:<[\d.]{0,10}(?: ?[second]{0,7})?|(?<![\d:.])\d[\d:.]{0,12})\Z")


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A piece of an answer; ``seconds`` is set if it is a time in the video."""

    text: str
    seconds: float | None = None


class TimeFinder:
    """Splits streamed text into plain pieces and times.  The pieces, joined, are exactly the text that came."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> list[TextPiece]:
        """The pieces that are complete now; what may be the beginning of a time is held back."""
        text = self._held + text
        unfinished = _UNFINISHED.search(text)
        cut = unfinished.start() if unfinished else len(text)
        self._held = text[cut:]
        return split_times(text[:cut])

    def finish(self) -> list[TextPiece]:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return split_times(held)


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
