"""Times for people: how long ago something was, when that was, and when it expires.  It knows no clock."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"))


def until(seconds: float) -> str:
    """When something expires that has ``seconds`` left: ``expires in 7 days``."""
    span = _span(seconds, round)
    return f"expires in {span}" if span else "expires in less than a minute"


def ago(seconds: float) -> str:
    """When something was that is ``seconds`` old: ``2 hours ago``."""
    span = _span(seconds, int)
    return f"{span} ago" if span else "just now"


def moment(timestamp: float) -> str:
    """When that was, seconds since 1970, as ISO 8601 in UTC."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="seconds")


def _span(seconds: float, whole: Callable[[float], int]) -> str:
    """In the largest unit that makes at least one whole; empty if none does."""
    for length, name in _UNITS:
        number = whole(seconds / length)
        if number >= 1:
            return f"{number} {name}{'s' if number > 1 else ''}"
    return ""
