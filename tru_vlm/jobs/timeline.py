"""A long video in spans: where they begin and end, and what becomes of their captions.  Pure arithmetic and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SHORTEST_SHARE = 0.25
"""A rest that is shorter than this part of a span belongs to the span before it."""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a video, in seconds from its start."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Entry:
    """What happens from when to when, in seconds from the video's start."""

    start: float
    end: float
    text: str


def split(start: float, end: float, *, span_seconds: float, overlap_seconds: float = 0.0) -> list[Span]:
    """Spans that together cover all from ``start`` to ``end``; each begins ``overlap_seconds`` before the last ends.

    Args:
        start: where to begin.
        end: where to end, after ``start``.
        span_seconds: length of one; the last is up to a quarter longer, or shorter.
        overlap_seconds: less than ``span_seconds``.
    """
    spans: list[Span] = []
    step, number = span_seconds - overlap_seconds, 0
    while True:
        begin = start + number * step
        stop = begin + span_seconds
        if stop + span_seconds * _SHORTEST_SHARE >= end:
            return [*spans, Span(round(begin, 3), end)]
        spans.append(Span(round(begin, 3), round(stop, 3)))
        number += 1


def num_spans(start: float, end: float, *, span_seconds: float, overlap_seconds: float = 0.0) -> int:
    """How many :func:`split` would make, give or take one; for bounds."""
    return max(1, int((end - start - overlap_seconds) / (span_seconds - overlap_seconds)) + 1)


def merge(captions: Sequence[Entry]) -> list[Entry]:
    """The timeline: captions in order, and one entry for neighbours that say the same."""
    timeline: list[Entry] = []
    for caption in captions:
        text = caption.text.strip()
        if timeline and timeline[-1].text == text and caption.start <= timeline[-1].end:
            timeline[-1] = Entry(timeline[-1].start, caption.end, text)
        else:
            timeline.append(Entry(caption.start, caption.end, text))
    return timeline


def question(timeline: Sequence[Entry], prompt: str) -> str:
    """What is asked when the timeline is known."""
    lines = [f"{clock(entry.start)} to {clock(entry.end)}: {entry.text}" for entry in timeline]
    return "\n".join(["This is what happens in a long video, part by part:", *lines, "", prompt])


def clock(seconds: float) -> str:
    """Seconds as people read them: 1:02:03, 2:03.5."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{hours}:{minutes:02d}:{text}" if hours else f"{minutes}:{text}"
