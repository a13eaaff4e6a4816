"""Nothing half done: work that a cancellation waits for, and files that are on the disk.  It knows no user of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


async def to_the_end(work: Awaitable[T]) -> T:
    """Await work that goes on when its awaiter is cancelled; the cancellation comes when it is over."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def flush(path: Path) -> None:
    """Bring a file, or a folder's entries, to the disk: a row must not outlive what it tells of."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
