"""What encoders do to the process that they run in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ordinary_scheduling() -> Iterator[None]:
    """Take back what SVT-AV1 does when root runs it: it puts the process before all others (SCHED_FIFO, 99).

    Every thread and process that is made afterwards would inherit it; servers, decoders and browsers would then fight
    for two cores by a rule under which who spins never yields.
    """
    try:
        yield
    finally:
        if hasattr(os, "sched_setscheduler"):  # not on macOS
            os.sched_setscheduler(os.getpid(), os.SCHED_OTHER, os.sched_param(0))
