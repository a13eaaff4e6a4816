"""When a request is sent again, and after how long.  Knows no request's content and sends nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass

import httpx

from tru_vlm.client.errors import retry_after_seconds

_REFUSED = frozenset({429, 503})
# The connection was never made, so nothing was sent; any other failure may come after the server has begun.
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True, slots=True)
class Retries:
    """Repeats what was refused before it began: 429, 503, and connections that were never made.

    A request whose answer has begun is never repeated, nor is one whose connection broke: it may be running.

    Attributes:
        max_retries: how often a request is sent again; 0 never.
        max_wait_seconds: longest wait; where ``Retry-After`` asks for more, the error is raised at once.
        backoff_seconds: wait before the first repetition where the server names none; doubles each time.
    """

    max_retries: int = 3
    max_wait_seconds: float = 60.0
    backoff_seconds: float = 0.5

    def wait_seconds(self, num_retries: int, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """How long to wait before the request is sent again; None to leave it at the outcome.

        Args:
            num_retries: how often it was sent again already.
            outcome: what came of the last time.
        """
        if num_retries >= self.max_retries:
            return None
        if isinstance(outcome, httpx.Response):
            if outcome.status_code not in _REFUSED:
                return None
            asked = retry_after_seconds(outcome.headers)
            if asked is not None:
                return asked if asked <= self.max_wait_seconds else None
        elif not isinstance(outcome, _UNSENT):
            return None
        longest = self.backoff_seconds * 2.0**num_retries
        # Clients that were refused together do not come back together.
        return min(self.max_wait_seconds, longest * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
