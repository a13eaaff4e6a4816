"""Runs many things with a bound on how many at once.  Knows not what they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def run_bounded(items: Iterable[T], work: Callable[[T], Awaitable[None]], num_at_once: int) -> None:
    """Do the work for every item, ``num_at_once`` under way at any time; the first exception ends all."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(num_at_once):
                group.create_task(worker())
    except* Exception as errors:
        raise errors.exceptions[0] from errors
