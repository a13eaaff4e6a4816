"""Computes a step's independent parts at once, each in a thread of its own.  Knows no tensors and no requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

Result = TypeVar("Result")


class SideBySide:
    """The caller's thread and its helpers.

    PyTorch's own threads meet at every operation, so that one that is interrupted stops all of them; these meet once.

    Args:
        num_threads: all of them, one or more.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._helpers = ThreadPoolExecutor(max(1, num_threads - 1), thread_name_prefix="step")  # starts none by itself

    def run(self, parts: Sequence[Callable[[], Result]]) -> list[Result]:
        """What the parts return, in order, when all have ended.

        A part sees nothing that belongs to the caller's thread, inference mode for instance.

        Raises:
            Exception: what a part raised, the first one's in order.
        """
        others = [self._helpers.submit(part) for part in parts[1:]]
        try:
            first = parts[0]()
        finally:
            wait(others)  # whoever handles an error must not meet parts that still run
        return [first, *(other.result() for other in others)]

    def close(self) -> None:
        """End the helpers."""
        self._helpers.shutdown()
