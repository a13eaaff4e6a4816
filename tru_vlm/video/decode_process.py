"""The server's end of one decode process: ask it, learn how it ended, have it killed.

It knows no pool and no slot, and not how the process was made.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from typing import Any

from tru_vlm.video.failures import DecodeFailure

MAX_ANSWER_BYTES = 16 << 20

_FILE_SIGNALS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP})


class PoolStartError(RuntimeError):
    """No decode process can be started; the text says why."""


class DiedBeforeError(Exception):
    """The process was gone before it accepted the request."""


class DecodeProcess:
    """One decode process and its socket."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        status: asyncio.Future[int],
        kill: Callable[[], None],
    ) -> None:
        """Take over the two ends of a channel.

        Args:
            reader: the channel's answers.
            writer: the channel's requests.
            status: will be the exit status, or minus the signal, when the process is gone.
            kill: has it killed, if it is not gone.
        """
        self._reader = reader
        self._writer = writer
        self._status = status
        self._kill = kill
        self._is_broken = False
        self.pid = 0

    @property
    def is_alive(self) -> bool:
        """Whether the process can take a request, as far as the loop knows."""
        return not self._status.done() and not self._is_broken

    async def greeting(self) -> dict[str, Any]:
        """The first message: its process id, and which decoder was loaded.

        Raises:
            PoolStartError: it cannot work, or ended.
        """
        message = await receive(self._reader)
        if message is None:
            status = await asyncio.shield(self._status)
            raise PoolStartError(f"a decode process ended at its start with exit status {status}")
        if not message["ready"]:
            raise PoolStartError(str(message["reason"]))
        self.pid = message["pid"]
        return message

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its result.

        Raises:
            DecodeFailure: the answer is an error, or the process ended over it.
            DiedBeforeError: the process was gone already.
        """
        if not await self._deliver(request):
            self._is_broken = True
            raise DiedBeforeError
        answer = await receive(self._reader)
        if answer is None:
            self._is_broken = True
            raise failure_of(await asyncio.shield(self._status))
        if "error" in answer:
            error = answer["error"]
            # After a fault of its own, or out of memory, the process ends: do not give it another file.
            self._is_broken = error["code"] in ("internal", "decode_memory")
            raise DecodeFailure(error["code"], error["detail"], stage=error["stage"], cause=error["cause"])
        result: dict[str, Any] = answer["result"]
        return result

    async def _deliver(self, request: dict[str, Any]) -> bool:
        """Whether the process accepted the request."""
        try:
            self._writer.write(json.dumps(request).encode() + b"\n")
            await self._writer.drain()
        except ConnectionError:
            return False
        return await receive(self._reader) == {"accepted": request["id"]}

    def kill(self) -> None:
        """End the process at once."""
        self._is_broken = True
        self._writer.close()
        if not self._status.done():
            self._kill()

    async def wait_end(self) -> None:
        """Wait until a killed process is gone."""
        await asyncio.shield(self._status)  # others wait for it too: a waiter that gives up must not cancel it


async def receive(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next line of JSON; None when the other side has ended."""
    try:
        line = await reader.readline()
    except ConnectionError:
        return None
    if not line.endswith(b"\n"):
        return None
    message: dict[str, Any] = json.loads(line)
    return message


def failure_of(status: int) -> DecodeFailure:
    """What the end of a process in the middle of a file means."""
    if -status in _FILE_SIGNALS:
        return DecodeFailure("decoder_crashed", cause=f"signal {-status}")
    if -status == signal.SIGXCPU:
        return DecodeFailure("decode_timeout", cause="CPU time limit")
    return DecodeFailure("internal", "a decode process was ended from outside", cause=f"exit status {status}")
