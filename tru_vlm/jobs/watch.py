"""A watch over something in the folder: by one process at a time, again when the bell rings.  It does not know what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from tru_vlm.errors import UnavailableError
from tru_vlm.jobs.bell import Bell, wait_for
from tru_vlm.jobs.process_lock import ProcessLock

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Longest time between two looks: what another process wrote down rings no bell here."""


class Watch:
    """One per process and thing.

    Args:
        name: of the thing, in plural, for the log.
        look: looks after it; returns when to look again at the latest, in seconds.
        lock: who has it looks.
        bell: wakes.
    """

    def __init__(self, name: str, look: Callable[[], Awaitable[float]], *, lock: ProcessLock, bell: Bell) -> None:
        self._name = name
        self._look = look
        self._lock = lock
        self._bell = bell
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, once no other process looks."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def close(self, begun: Iterable[asyncio.Task[None]]) -> None:
        """Stop, with the tasks that a look has begun; another process may look then."""
        tasks = [*begun, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._lock.release()

    async def _run(self) -> None:
        has_lock = False
        while True:
            ring = self._bell.next_ring()
            wait_seconds = LOOK_SECONDS
            try:
                has_lock = has_lock or self._lock.try_take()
                if has_lock:
                    wait_seconds = await self._look()
            except UnavailableError as error:
                logger.warning("%s wait: %s", self._name, error.message)
            except Exception:
                logger.exception("%s cannot be looked after; it is tried again", self._name)
            await wait_for(ring, wait_seconds)
