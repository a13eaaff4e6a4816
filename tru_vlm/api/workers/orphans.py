"""Ends a worker whose server is gone while it still loads: its loop, which looks for itself, has not begun yet."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 0.5


@contextlib.contextmanager
def ends_with_parent(parent_pid: int) -> Iterator[None]:
    """While the block runs, this process ends at once when its parent is gone.

    Loading a large model takes minutes, in which nothing else would notice; vLLM's processes end with their worker.

    Args:
        parent_pid: the parent; where it is not, nothing is watched.
    """
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_CHECK_SECONDS):
            if os.getppid() != parent_pid:
                logger.error("the server is gone; worker %d ends while it loads", os.getpid())
                os._exit(1)

    if os.getppid() == parent_pid:
        threading.Thread(target=watch, name="parent", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
