"""How many of a machine's cores an engine computes with.  It knows no engine and no tensor."""

from __future__ import annotations

import os


def num_compute_threads(num_engines: int, *, most: int) -> int:
    """On a CPU, all cores but one, shared out among the engines; at least one.

    The one is for the HTTP process and the decode pool. Threads of OpenMP meet at every operation, so that one that is
    interrupted stops all of them: on two cores, two threads beside a busy HTTP process are slower than one.

    Args:
        num_engines: how many share this machine.
        most: what is allowed, as PyTorch says by itself; it counts neither a core's second thread nor what
            OMP_NUM_THREADS excludes.
    """
    return max(1, min(most, (_num_cores() - 1) // num_engines))


def num_step_threads(num_engines: int, *, num_compute_threads: int) -> int:
    """Threads that compute parts of an engine's step side by side on a CPU, each with ``num_compute_threads``.

    Two where that is one: the core that is left is idle whenever nothing is decoded, and threads that meet once in a
    step lose little where it is not.

    Args:
        num_engines: how many share this machine.
        num_compute_threads: of each operation.
    """
    return 2 if num_compute_threads == 1 and _num_cores() > num_engines else 1


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
