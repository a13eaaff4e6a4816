"""How often a client may ask: requests and video seconds in a minute, and requests at once.  It knows no HTTP.

Rates are counted by the package ``limits`` in a sliding window: in memory, or in Redis for several servers together.
A Redis that cannot be reached is no reason to refuse everybody, nor to let everybody in: then each server counts alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from redis.asyncio import ConnectionPool

from tru_vlm.errors import InvalidRequestError, OverloadedError
from tru_vlm.principal import Principal

logger = logging.getLogger(__name__)

_REDIS_SECONDS = 1.0
_RETRY_REDIS_SECONDS = 30.0
_RETRY_AFTER_SECONDS = 2.0


class _Limiter(SlidingWindowCounterRateLimiter):
    """With the type of its storage."""

    storage: MemoryStorage | RedisStorage


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a client's requests in this minute.

    Attributes:
        limit: requests in a minute.
        remaining: of them.
        reset_seconds: until the next one comes back.
    """

    limit: int
    remaining: int
    reset_seconds: float


class RateCounter:
    """Counts what clients do, and refuses what is too much.  For one event loop.

    Args:
        redis_url: where to count for several servers together; empty counts in memory.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._open: Counter[str] = Counter()
        self._own: _Limiter | None = None
        self._connections: ConnectionPool | None = None
        self._shared: _Limiter | None = None
        self._shared_again = 0.0

    async def start(self) -> None:
        """Connect to Redis, where it is used.

        Raises:
            ConnectionError: if it cannot be reached; the text is for the operator, without the URL's password.
        """
        self._own = _Limiter(MemoryStorage())
        if not self._redis_url:
            return
        self._connections = ConnectionPool.from_url(
            self._redis_url, socket_timeout=_REDIS_SECONDS, socket_connect_timeout=_REDIS_SECONDS
        )
        storage = RedisStorage(
            f"async+{self._redis_url}",
            wrap_exceptions=True,
            implementation="redispy",
            key_prefix="tru-vlm",
            connection_pool=self._connections,  # type: ignore[arg-type]  # its options are passed on as they are
        )
        if not await storage.check():
            await self.close()
            raise ConnectionError("REDIS_URL: no Redis answers there, or it refuses the user and password.")
        self._shared = _Limiter(storage)

    async def close(self) -> None:
        """Disconnect from Redis."""
        if self._connections is not None:
            await self._connections.aclose()

    async def count_request(self, principal: Principal) -> Allowance | None:
        """Count one request; returns what is left, None where there is no limit.

        Raises:
            OverloadedError: code ``rate_limit_exceeded``; the request is not counted.
        """
        limit = principal.limits.requests_per_minute
        if not limit:
            return None
        item = RateLimitItemPerMinute(limit, namespace="requests")
        is_in, reset_seconds, remaining = await self._hit(item, principal.counted_as, 1)
        if not is_in:
            raise _exceeded(f"{limit} requests a minute", reset_seconds)
        return Allowance(limit, remaining, reset_seconds)

    async def count_video(self, principal: Principal, seconds: float, *, param: str | None) -> None:
        """Count seconds of video that are to be looked at.

        Args:
            principal: who asks.
            seconds: of all the request's videos.
            param: the request's field, for errors.

        Raises:
            OverloadedError: code ``rate_limit_exceeded``.
            InvalidRequestError: more than a whole minute's; waiting would not help.
        """
        limit = principal.limits.video_seconds_per_minute
        cost = math.ceil(seconds)
        if not limit or not cost:
            return
        if cost > limit:
            raise InvalidRequestError(
                f"It asks about {cost} s of video; {limit} s a minute are allowed. Ask about a part of it.",
                param=param,
                code="video_rate_limit_too_small",
            )
        item = RateLimitItemPerMinute(limit, namespace="video_seconds")
        is_in, reset_seconds, _ = await self._hit(item, principal.counted_as, cost)
        if not is_in:
            raise _exceeded(f"{limit} seconds of video a minute", reset_seconds)

    def enter(self, principal: Principal) -> None:
        """Begin a question; :meth:`leave` ends it.

        Raises:
            OverloadedError: code ``too_many_concurrent_requests``.
        """
        self.check_room(principal)
        self._open[principal.counted_as] += 1

    def check_room(self, principal: Principal) -> None:
        """Whether :meth:`enter` would let it in.  Raises as that does."""
        most = principal.limits.max_concurrent_requests
        if most and self._open[principal.counted_as] >= most:
            raise OverloadedError(
                f"You have {most} questions open, as many as are allowed; try again when one has ended.",
                code="too_many_concurrent_requests",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )

    def leave(self, principal: Principal) -> None:
        """End a question."""
        self._open[principal.counted_as] -= 1
        if not self._open[principal.counted_as]:
            del self._open[principal.counted_as]

    async def _hit(self, item: RateLimitItem, who: str, cost: int) -> tuple[bool, float, int]:
        """Count; whether it is within the limit, seconds until some of it comes back, and how much is left."""
        if self._shared is not None and time.monotonic() >= self._shared_again:
            try:
                return await _hit(self._shared, item, who, cost)
            except StorageError as error:
                self._shared_again = time.monotonic() + _RETRY_REDIS_SECONDS
                logger.warning("Redis does not count (%s); this server counts alone for a while", _cause(error))
        assert self._own is not None  # noqa: S101 - started before any request comes
        return await _hit(self._own, item, who, cost)


async def _hit(limiter: _Limiter, item: RateLimitItem, who: str, cost: int) -> tuple[bool, float, int]:
    is_in = await limiter.hit(item, who, cost=cost)
    window = _Window(*await limiter.storage.get_sliding_window(item.key_for(who), item.get_expiry()))
    seconds = window.seconds_until(cost if not is_in else 1, limit=item.amount, period=item.get_expiry())
    return is_in, seconds, max(0, item.amount - math.floor(window.used(item.get_expiry())))


@dataclass(frozen=True, slots=True)
class _Window:
    """What ``limits`` counted: in the fixed period before this one, which fades out, and in this one."""

    previous_count: int
    previous_seconds_left: float
    current_count: int
    current_seconds_left: float

    def used(self, period: float) -> float:
        return self.previous_count * self.previous_seconds_left / period + self.current_count

    def seconds_until(self, cost: int, *, limit: int, period: float) -> float:
        """How long until ``cost`` is within the limit, if nothing else is counted."""
        room = limit - cost
        if self.used(period) < room + 1:
            return 0.0
        in_this_period = self.current_seconds_left % period
        if self.current_count <= room:  # enough of the previous period will have faded out before this one ends
            return self.previous_seconds_left - (room - self.current_count) * period / self.previous_count
        return in_this_period + period * (1 - room / self.current_count)


def _cause(error: StorageError) -> str:
    return type(error.storage_error).__name__


def _exceeded(allowed: str, reset_seconds: float) -> OverloadedError:
    return OverloadedError(
        f"The rate limit is {allowed}; try again later.",
        code="rate_limit_exceeded",
        retry_after_seconds=max(1.0, reset_seconds),
    )
