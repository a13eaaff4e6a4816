"""Tries a client's JSON schema in a child process, before its video is decoded.  Knows no engine.

A schema is a program for the grammar's compiler, and its author is a stranger: only a process that the system ends
bounds what it costs.  A worker, which compiles it again, sees those only that passed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections import OrderedDict

from tru_vlm.errors import InvalidRequestError
from tru_vlm.processor import grammar

_MAX_CHILDREN = 2
_MAX_REMEMBERED = 1024
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")


class SchemaCheck:
    """Remembers, by digest, the schemas that passed; runs few children at once."""

    def __init__(self) -> None:
        self._children = asyncio.Semaphore(_MAX_CHILDREN)
        self._passed: OrderedDict[bytes, None] = OrderedDict()

    async def check(self, schema: str, *, param: str) -> None:
        """Let a schema pass, or refuse it.

        Args:
            schema: JSON text.
            param: the field that held it.

        Raises:
            InvalidRequestError: naming ``param`` and what is wrong.
        """
        digest = hashlib.sha256(schema.encode()).digest()
        if schema == grammar.ANY_OBJECT or digest in self._passed:
            return
        async with self._children:
            verdict = await _try_schema(schema)
        if verdict:
            raise InvalidRequestError(f"{param}: the schema cannot be followed: {verdict}.", param=param)
        self._passed[digest] = None
        if len(self._passed) > _MAX_REMEMBERED:
            self._passed.popitem(last=False)


async def _try_schema(schema: str) -> str:
    """What is wrong with the schema; "" if nothing is."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        grammar.__file__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    )
    try:
        output, _ = await child.communicate(schema.encode())
    finally:
        if child.returncode is None:  # the request was cancelled, or its time is over
            child.kill()
            await child.wait()
    if child.returncode:
        return "its grammar takes more time or memory than this server spends on one"
    return str(json.loads(output))
