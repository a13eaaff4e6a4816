"""Runs a few jobs side by side for one request: bounded, in order, and all over when it returns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AT_ONCE = 4


async def side_by_side(
    work: Callable[[Item], Awaitable[Result]], items: Sequence[Item], at_once: int = AT_ONCE
) -> list[Result]:
    """What ``work`` gives for each item, in the order of the items.

    The first failure stops the others and is raised as it is; a cancellation stops all.  Either way none of them runs
    any more when this ends, so what they hold can be given back.

    Args:
        work: what to do.
        items: with what.
        at_once: how many at most.
    """
    places = asyncio.Semaphore(at_once)

    async def one(item: Item) -> Result:
        async with places:
            return await work(item)

    if len(items) == 1:
        return [await work(items[0])]
    waiting = asyncio.current_task()
    assert waiting is not None  # noqa: S101 - this is a coroutine
    num_cancels = waiting.cancelling()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as failed:
        # When one fails, a group cancels the task that waits for it, and up to Python 3.12 leaves that counted: the
        # request's deadline, if it passes while things are given back, would be taken for its client's leaving.
        while waiting.cancelling() > num_cancels:
            waiting.uncancel()
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
