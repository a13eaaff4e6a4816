"""Cancels a coroutine at a chosen one of its waits, so that a test can try them all instead of hoping for a race."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Moment = Literal["waiting", "done"]
"""Cancelled while it waits, or when what it waited for is there and it has not gone on yet."""


@types.coroutine
def _cancelled_at(coroutine: Coroutine[Any, Any, T], number: int, moment: Moment) -> Generator[Any, Any, T]:
    task = asyncio.current_task()
    assert task is not None
    count = 0
    send: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        try:
            future = send(value)
        except StopIteration as end:
            return end.value
        if count == number:
            if moment == "done" and future is not None:
                future.add_done_callback(lambda _: task.cancel())  # runs before the task's own, which wakes it
            else:
                asyncio.get_running_loop().call_soon(task.cancel)
        count += 1
        try:
            value, send = (yield future), coroutine.send
        except BaseException as error:  # noqa: BLE001 - it is passed on
            value, send = error, coroutine.throw


async def at_every_wait(
    make: Callable[[], Coroutine[Any, Any, T]],
    *,
    release: Callable[[T], Awaitable[None]],
    check: Callable[[], Awaitable[None]],
) -> None:
    """Run a coroutine again and again, cancelled at its first, second, third… wait, up to the end.

    Args:
        make: makes the coroutine.
        release: gives back what a run returned that was not cancelled.
        check: is awaited after each run; asserts that nothing is left of it.
    """
    moments: tuple[Moment, ...] = ("waiting", "done")
    for moment in moments:
        number, was_cancelled = 0, True
        while was_cancelled:
            task = asyncio.ensure_future(_run(make(), number, moment))
            await asyncio.wait([task])
            was_cancelled = task.cancelled()
            if not was_cancelled:
                await release(task.result())
            await check()
            number += 1


async def _run(coroutine: Coroutine[Any, Any, T], number: int, moment: Moment) -> T:
    return await _cancelled_at(coroutine, number, moment)


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Let others work until something is so; fails when it never happens."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)
