"""What a process that reads hostile files may not do, and when it dies; it knows neither files nor requests."""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import sys
from pathlib import Path

from tru_vlm.video.failures import DecodeSetupError
from tru_vlm.video.media import DecodeDevice

MEBIBYTE = 1 << 20
ROOM_BYTES = 256 * MEBIBYTE
"""Address space that must be left for files after the libraries have loaded."""

_STATM_SIZE = 0
_STATM_DATA = 5
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000


def confine() -> None:
    """Give up, for this process and all that it forks: the network, new privileges, core dumps, polite signals.

    Must come before threads start: a user namespace is for single-threaded processes.
    """
    # Both reach whole process groups while the server still drains; it ends its decoders itself, with SIGKILL.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the user's video
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # A network namespace without interfaces, where the system allows it: a decoder has nothing to call.
    if libc.unshare(_CLONE_NEWNET) != 0:
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def die_with_parent(parent_pid: int) -> None:
    """Be killed when the parent is (Linux); elsewhere the socket's end is what ends this process.  Not inherited."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit(1)


def limit_memory(memory_bytes: int, device: DecodeDevice) -> None:
    """Bound the address space, and any file that is written, which is mapped into it.

    With CUDA, which reserves far more addresses than it uses, what is bounded is the memory that the process may write
    to and shares with nobody; the memory of the card is bounded by nothing here.

    Raises:
        DecodeSetupError: the libraries alone take nearly all of it.
    """
    kind, field = (resource.RLIMIT_DATA, _STATM_DATA) if device == "cuda" else (resource.RLIMIT_AS, _STATM_SIZE)
    used = _statm_bytes(field)
    if used + ROOM_BYTES > memory_bytes:
        needed = math.ceil((used + ROOM_BYTES) / MEBIBYTE)
        raise DecodeSetupError(
            f"DECODE_MEMORY_BYTES is {memory_bytes}; the decoding libraries need at least {needed} MiB "
            f"({needed * MEBIBYTE})"
        )
    if sys.platform == "linux":  # macOS refuses to lower it
        resource.setrlimit(kind, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory_bytes, memory_bytes))


def _statm_bytes(field: int) -> int:
    """A field of Linux' account of this process's memory; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[field])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def limit_cpu(cpu_seconds: float) -> None:
    """Allow this many more seconds of CPU time, all threads together; beyond them the system ends the process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(usage.ru_utime + usage.ru_stime + cpu_seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
