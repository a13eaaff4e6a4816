"""Runs the server for as long as whoever started this lives: ``python -m tru_vlm.cluster.guarded``.

A Ray actor that is killed cannot tell its children, and Ray kills those, but not theirs.  The standard input of this
process is a pipe that only the actor holds.  A guard reads it: at its end, all processes of the server are killed, so
that their device is free for the next one.  This process itself becomes the server.
"""

from __future__ import annotations

import os
import select
import signal
import sys

_LOOK_SECONDS = 1.0


def main() -> None:
    """Become the server, in a process group of its own, with the guard as a child in another one."""
    os.setsid()
    server = os.getpid()
    if os.fork() == 0:
        os.setsid()
        _guard(server)
        return
    with open(os.devnull) as nothing:  # noqa: PTH123 - its number is what matters
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    os.execv(sys.executable, [sys.executable, "-m", "tru_vlm", "serve"])  # noqa: S606 - there is no shell to be had


def _guard(group: int) -> None:
    """Wait for the end of the pipe and kill the group, or until there is none any more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        while not select.select([sys.stdin], [], [], _LOOK_SECONDS)[0]:
            os.killpg(group, 0)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


if __name__ == "__main__":
    main()
