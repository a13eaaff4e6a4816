"""The nursery keeps one template process alive and has it fork decode processes; it knows no slot and no file.

A template's start imports the libraries: seconds, minutes on a starved machine.  A fork of it takes milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

from tru_vlm.video.decode_process import MAX_ANSWER_BYTES, DecodeProcess, PoolStartError, receive
from tru_vlm.video.decode_template import FORK, KILL, ORDER

logger = logging.getLogger(__name__)

START_SECONDS = 300.0
"""Longest start of the template."""
FORK_SECONDS = 60.0
"""Longest start of a child; a template that takes longer hangs, and is killed with its children."""


class TemplateGoneError(Exception):
    """The template ended before the child was ready."""


class Nursery:
    """One template at a time, started when a child is wanted and there is none."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._arguments = arguments
        self._environment = environment
        self._template: Template | None = None
        self._start: asyncio.Task[Template] | None = None
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """The template's process id, if it is ready."""
        return self._template.pid if self._template is not None and self._template.is_alive else None

    async def child(self) -> tuple[DecodeProcess, dict[str, Any]]:
        """A new decode process and its greeting.

        Raises:
            PoolStartError: the template or the process cannot start; the text says why.
        """
        for _ in range(2):
            template = await self._living()
            try:
                return await template.fork()
            except TemplateGoneError:  # it was killed, perhaps long ago, and the loop did not know yet
                await template.end()
        raise PoolStartError("the template of the decode processes keeps ending")

    def kill(self) -> None:
        """End the template at once, and its children with it."""
        if self._template is not None:
            self._template.kill()

    async def close(self) -> None:
        """End the template and wait until it is gone; no other one will start."""
        self._is_closed = True
        if self._start is not None:
            self._start.cancel()
            await asyncio.gather(self._start, return_exceptions=True)
        if self._template is not None:
            await self._template.end()

    async def _living(self) -> Template:
        if self._template is not None and self._template.is_alive:
            return self._template
        if self._is_closed:
            raise PoolStartError("the pool is closed")
        if self._start is None or self._start.done():
            self._start = asyncio.create_task(self._begin())
        start = self._start
        await asyncio.wait([start])  # not the task itself: others wait for it too
        if start.cancelled():
            raise PoolStartError("the pool is closed")
        return start.result()

    async def _begin(self) -> Template:
        self._template = template = await Template.start(self._arguments, self._environment)
        return template


class Template:
    """The server's end of the template process."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        control: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._control = control
        self._reader = reader
        self._writer = writer
        self._numbers = count(1)
        self._statuses: dict[int, asyncio.Future[int]] = {}
        """Of each child that has not ended, by its number."""
        self._life: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, arguments: Sequence[str], environment: Mapping[str, str]) -> Template:
        """Start a template and wait until it has loaded its libraries.

        Raises:
            PoolStartError: it says, or its end says, that it cannot work.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "tru_vlm.video.decode_template",
                    *("--fd", str(theirs.fileno()), "--parent-pid", str(os.getpid()), *arguments),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # Ctrl-C is for the server, which drains first
                    cwd="/",
                    env=environment,
                )
            except BaseException:
                writer.close()
                raise
        template = cls(process, ours, reader, writer)
        await template.be_ready()
        return template

    async def be_ready(self) -> None:
        """Wait until it has loaded its libraries; whatever goes wrong with that is its end.

        Raises:
            PoolStartError: it says, or its end says, that it cannot work.
        """
        try:
            reason = await self._refusal()
        except BaseException:
            await asyncio.shield(self._gone())
            raise
        if reason is not None:
            await self._gone()
            raise PoolStartError(reason)
        self._life = asyncio.create_task(self._listen())

    async def _refusal(self) -> str | None:
        """Why it cannot work; None when it can."""
        try:
            async with asyncio.timeout(START_SECONDS):
                greeting = await receive(self._reader)
        except TimeoutError:
            return f"the template of the decode processes took more than {START_SECONDS:g} s to start"
        if greeting is None:
            return f"the template of the decode processes ended at its start with exit status {await self._gone()}"
        return None if greeting["ready"] else str(greeting["reason"])

    @property
    def pid(self) -> int:
        """The template's process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can fork, as far as the loop knows."""
        return self._life is not None and not self._reader.at_eof() and not self._writer.is_closing()

    async def fork(self) -> tuple[DecodeProcess, dict[str, Any]]:
        """A new child and its greeting.

        Raises:
            PoolStartError: the child says, or its end says, that it cannot work.
            TemplateGoneError: the template ended meanwhile.
        """
        child = await self._order_child()
        try:
            async with asyncio.timeout(FORK_SECONDS):
                return child, await child.greeting()
        except BaseException as error:
            if isinstance(error, TimeoutError):
                self.kill()
            child.kill()
            await child.wait_end()
            if isinstance(error, TimeoutError):
                raise PoolStartError(f"a decode process took more than {FORK_SECONDS:g} s to start") from error
            if isinstance(error, PoolStartError) and not self.is_alive:
                raise TemplateGoneError from error
            raise

    async def _order_child(self) -> DecodeProcess:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_ANSWER_BYTES)
            number = next(self._numbers)
            try:
                self._order(FORK, number, theirs.fileno())
            except OSError as error:
                writer.close()
                raise TemplateGoneError from error
        self._statuses[number] = status = asyncio.get_running_loop().create_future()
        return DecodeProcess(reader, writer, status=status, kill=partial(self._order_kill, number))

    def _order_kill(self, number: int) -> None:
        with suppress(OSError):  # the template is gone, and its children with it
            self._order(KILL, number)

    def _order(self, verb: bytes, number: int, *fds: int) -> None:
        """Send an order, past the stream, which cannot attach file descriptors.  A full socket means a hung template.

        Raises:
            OSError: the template is gone, or was hung and is killed.
        """
        if not self.is_alive:
            raise BrokenPipeError
        try:
            socket.send_fds(self._control, [ORDER.pack(verb, number)], fds)
        except BlockingIOError:
            self.kill()
            raise

    async def _listen(self) -> None:
        """Take note of children's ends until the template's own."""
        while (message := await receive(self._reader)) is not None:
            status = self._statuses.pop(message["ended"], None)
            if status is not None:
                status.set_result(message["status"])
        is_wanted = self._writer.is_closing()
        code = await self._gone()
        if not is_wanted:
            logger.warning("the template of the decode processes ended with exit status %d", code)

    async def _gone(self) -> int:
        """Kill the process and wait until it is gone.  Its children are killed with it."""
        self._writer.close()
        self.kill()
        code = await self._process.wait()
        while self._statuses:
            self._statuses.popitem()[1].set_result(-signal.SIGKILL)
        return code

    def kill(self) -> None:
        """End the process at once."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> None:
        """Kill the process and wait until it is gone."""
        self._writer.close()
        self.kill()
        if self._life is not None:
            await asyncio.wait([self._life])
