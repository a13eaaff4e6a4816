"""What a process has loaded stays as it is: the garbage collector need not look through it again and again."""

from __future__ import annotations

import gc


def settle_memory() -> None:
    """Take what is there now out of the garbage collector's sight; called once, when a process has started.

    The libraries of a worker are some 400,000 objects.  A full collection visits all of them: for a fifth of a second
    and more, no answer goes on.
    """
    gc.collect()
    gc.freeze()
