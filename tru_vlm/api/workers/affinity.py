"""Which worker is likely to hold the caches of a video, and whether it is worth going there.  It knows no requests.

A worker keeps what it computed of a video (features, keys and values), so the next question on that video is cheaper
there.  Nobody tells what a worker still holds: it is assumed to hold what it was last asked about, up to a bound.

A worker that holds the video is preferred, but nobody waits for it: it is passed over while it has no free row, or
while it is busier than the least busy worker by more than half a batch.  Then the least busy one takes the request,
and holds the video from then on.  So a video that everybody asks about spreads over as many workers as it needs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_KEYS = 256
"""Contents that a worker is assumed to hold; the least recently asked about are forgotten first."""


@dataclass(frozen=True, slots=True)
class AffinityStats:
    """Counters so far, in requests.

    Attributes:
        num_hits: went to a worker that holds their video.
        num_misses: no worker held it.
        num_diverted: a worker held it, but was full or too busy.
    """

    num_hits: int
    num_misses: int
    num_diverted: int


class Affinity:
    """Remembers which worker was asked about which content.

    Args:
        num_workers: how many workers there are; they are known by their number.
        max_requests_per_worker: rows of a worker's batch.
        max_keys: contents remembered of each.
    """

    def __init__(self, num_workers: int, max_requests_per_worker: int, max_keys: int = MAX_KEYS) -> None:
        self._held: list[OrderedDict[str, None]] = [OrderedDict() for _ in range(num_workers)]
        self._max_requests = max_requests_per_worker
        self._max_keys = max_keys
        self._num_hits = self._num_misses = self._num_diverted = 0

    def choose(self, content_keys: Sequence[str], loads: Mapping[int, int]) -> int | None:
        """The worker for a request, which holds its content from now on; None when no worker has a free row.

        Args:
            content_keys: of the request's media.
            loads: requests that each worker has; workers that cannot be reached are left out.
        """
        free = {worker: load for worker, load in loads.items() if load < self._max_requests}
        if not free:
            return None
        least = min(free.values())
        near = {worker for worker, load in free.items() if load - least <= self._max_requests // 2}

        def cost(worker: int) -> tuple[int, int, int]:
            held = self._num_held(worker, content_keys) if worker in near else 0
            return -held, free[worker], len(self._held[worker])  # of equals, the one whose caches have most room

        chosen = min(free, key=cost)
        self._count(chosen, content_keys)
        self._remember(chosen, content_keys)
        return chosen

    def forget(self, worker: int) -> None:
        """The worker is gone, and its caches with it."""
        self._held[worker].clear()

    def stats(self) -> AffinityStats:
        """Counters; cheap."""
        return AffinityStats(self._num_hits, self._num_misses, self._num_diverted)

    def _num_held(self, worker: int, content_keys: Sequence[str]) -> int:
        return sum(key in self._held[worker] for key in content_keys)

    def _count(self, chosen: int, content_keys: Sequence[str]) -> None:
        if self._num_held(chosen, content_keys):
            self._num_hits += 1
        elif any(self._num_held(worker, content_keys) for worker in range(len(self._held))):
            self._num_diverted += 1
        else:
            self._num_misses += 1

    def _remember(self, worker: int, content_keys: Sequence[str]) -> None:
        held = self._held[worker]
        for key in content_keys:
            held[key] = None
            held.move_to_end(key)
        while len(held) > self._max_keys:
            held.popitem(last=False)
