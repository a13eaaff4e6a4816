"""Who asks: the one object into which a key, a session or an address turns at the door.  It knows no HTTP and no keys.

Everything that belongs to somebody (caches, videos, jobs, limits, log lines) is told by it whose it is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

_SALT_HEX_DIGITS = 16


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What one client may do; 0 sets no limit.

    Attributes:
        requests_per_minute: questions, plans and other calls that change or compute something.
        video_seconds_per_minute: seconds of video that are looked at.
        max_concurrent_requests: questions that may be open at once.
    """

    requests_per_minute: int = 0
    video_seconds_per_minute: int = 0
    max_concurrent_requests: int = 0


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        name: the key's name, for logs; never the key.
        tenant: whose data is read and written; keys of one tenant share theirs.
        counted_as: whom the limits count: a key, or an address where nobody needs one.
        limits: what it may do.
    """

    name: str
    tenant: str
    counted_as: str
    limits: RateLimits = RateLimits()

    @property
    def cache_salt(self) -> str:
        """16 hex digits that are the tenant's own; what is cached under one salt is never found under another."""
        return cache_salt_of(self.tenant)


def cache_salt_of(tenant: str) -> str:
    """See :attr:`Principal.cache_salt`."""
    return hashlib.sha256(f"tenant:{tenant}".encode()).hexdigest()[:_SALT_HEX_DIGITS]


ANONYMOUS = Principal(name="anonymous", tenant="public", counted_as="anonymous")
"""Everybody, on a server without keys; the door puts an address into ``counted_as``."""
