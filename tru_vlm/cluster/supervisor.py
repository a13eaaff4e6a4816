"""Runs the server for as long as whoever started this lives: ``python -m tru_vlm.cluster.supervisor``.

A Ray actor that is killed cannot tell its children.  The standard input of this process is a pipe that only the actor
holds: at its end, the server and all its processes are killed, so that their device is free for the next one.  SIGTERM
is passed on, and the server drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys


async def _run() -> int:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tru_vlm", "serve", stdin=asyncio.subprocess.DEVNULL, start_new_session=True
    )

    def pass_on() -> None:
        with contextlib.suppress(ProcessLookupError):
            server.terminate()

    def read() -> None:
        if os.read(sys.stdin.fileno(), 1):
            return
        loop.remove_reader(sys.stdin.fileno())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, pass_on)
    loop.add_reader(sys.stdin.fileno(), read)
    return await server.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(_run()))
