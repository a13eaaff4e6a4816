"""The deliverer has messages about ended jobs sent, and again until they are taken.  It knows no network and no job.

What is due, and when, is in the store: a server that was killed goes on where it was.  Of several processes on one
folder, one delivers.  A message may be sent twice (the process died before it could write down that it was taken), with
the same id.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from tru_vlm.errors import UnavailableError
from tru_vlm.jobs.bell import Bell
from tru_vlm.jobs.process_lock import ProcessLock
from tru_vlm.jobs.watch import LOOK_SECONDS, Watch
from tru_vlm.jobs.webhook_store import Attempt, Message, WebhookStatus, WebhookStore

logger = logging.getLogger(__name__)

MAX_AT_ONCE, MAX_OF_OWNER = 8, 4
"""Attempts at once: of all, and of one owner, whose slow receivers shall not stop those of others."""

_GROWTH, _JITTER = 4.0, 0.2
_LONGEST_WAIT_SECONDS = 6 * 3600.0


class Sender(Protocol):
    """Makes attempts."""

    async def send(self, message: Message, body: str) -> Attempt:
        """Send a message once; what goes wrong is told, not raised."""
        ...


@dataclass(frozen=True, slots=True)
class Retrying:
    """When a message is sent again.

    Attributes:
        max_attempts: how often it is sent at most.
        first_wait_seconds: after the first failure; each further wait is four times as long, up to six hours.
    """

    max_attempts: int
    first_wait_seconds: float

    def wait_seconds(self, num_attempts: int, attempt: Attempt) -> float | None:
        """How long until the next attempt; None when there is none.

        Args:
            num_attempts: so far, this one included.
            attempt: that failed.
        """
        if attempt.is_last or num_attempts >= self.max_attempts:
            return None
        own = self.first_wait_seconds * _GROWTH ** min(num_attempts - 1, 20)
        # Messages that failed together do not come back together.
        own *= 1.0 + random.uniform(0.0, _JITTER)  # noqa: S311 - no secret
        return min(_LONGEST_WAIT_SECONDS, max(own, attempt.retry_after_seconds))


class WebhookDeliverer:
    """One per process.

    Args:
        store: what is due.
        sender: sends it.
        body_of: what is told of a job, by its number; None if it is gone.
        lock: who has it delivers.
        bell: is rung when a job ends.
        retrying: when it is tried again.
        count: is told of each attempt: how far it has brought the message.
    """

    def __init__(
        self,
        store: WebhookStore,
        sender: Sender,
        body_of: Callable[[int], Awaitable[str | None]],
        *,
        lock: ProcessLock,
        bell: Bell,
        retrying: Retrying,
        count: Callable[[WebhookStatus], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._sender = sender
        self._body_of = body_of
        self._bell = bell
        self._watch = Watch("webhooks", self._look, lock=lock, bell=bell)
        self._retrying = retrying
        self._count = count
        self._sending: dict[int, tuple[Message, asyncio.Task[None]]] = {}

    def start(self) -> None:
        """Begin, once no other process delivers."""
        self._watch.start()

    async def close(self) -> None:
        """Stop; what is being sent is sent again by the next process."""
        await self._watch.close([task for _, task in self._sending.values()])

    async def _look(self) -> float:
        """Send what is due; returns when to look again, in seconds."""
        while len(self._sending) < MAX_AT_ONCE:
            messages = [message for message, _ in self._sending.values()]
            message = await self._store.due(time.time(), but_for=messages, max_of_owner=MAX_OF_OWNER)
            if message is None:
                break
            self._spawn(message)
        next_due = await self._store.next_due()
        seconds = next_due - time.time() if next_due is not None else 0.0
        # What is due and not sent has no place yet; the end of what has one rings.
        return min(seconds, LOOK_SECONDS) if seconds > 0.0 else LOOK_SECONDS

    def _spawn(self, message: Message) -> None:
        task = asyncio.create_task(self._deliver(message), name=message.id)
        self._sending[message.job] = message, task

        def ended(_: asyncio.Task[None]) -> None:
            del self._sending[message.job]
            self._bell.ring()

        task.add_done_callback(ended)

    async def _deliver(self, message: Message) -> None:
        try:
            body = await self._body_of(message.job)
            if body is None:
                return
            attempt = await self._sender.send(message, body)
        except Exception:
            logger.exception("%s cannot be sent", message.id)
            attempt = Attempt(None, "This server failed; its log tells why.")
        num_attempts, now = message.num_attempts + 1, time.time()
        wait_seconds = self._retrying.wait_seconds(num_attempts, attempt)
        next_attempt_at = now + wait_seconds if wait_seconds is not None else None
        while True:
            try:
                status = await self._store.record(message, attempt, now=now, next_attempt_at=next_attempt_at)
                break
            except UnavailableError as error:
                logger.warning("webhooks wait: %s", error.message)
                await asyncio.sleep(LOOK_SECONDS)
        if status is None:
            return
        self._count(status)
        if status == "failed":
            logger.warning("%s was not delivered in %d attempts: %s", message.id, num_attempts, attempt.error)
