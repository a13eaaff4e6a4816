"""The cache remembers fetched files by URL, so that an unchanged one is not fetched twice; it speaks no HTTP.

It never decides by itself that a file is fresh: the server is asked each time (RFC 9110, section 13), and only its
"304 Not Modified" makes the stored copy the answer.  URLs are kept as digests, because they may hold credentials.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from tru_vlm.errors import UnavailableError
from tru_vlm.intake.spool import Spool, SpooledFile

MAX_VALIDATOR_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Validators:
    """What a server told to recognise this version of a file by; empty when it told nothing."""

    etag: bytes = b""
    last_modified: bytes = b""

    def is_usable(self) -> bool:
        """Whether a conditional request can be made of them."""
        return 0 < len(self.etag) + len(self.last_modified) <= MAX_VALIDATOR_BYTES

    def request_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that ask for the file only if it changed."""
        pairs = ((b"If-None-Match", self.etag), (b"If-Modified-Since", self.last_modified))
        return [(name, value) for name, value in pairs if value]


@dataclass(frozen=True, slots=True)
class _Entry:
    validators: Validators
    file: SpooledFile


class UrlCache:
    """Files by URL, bounded in bytes; the least recently used go first.  Lives in the spool, ends with it.

    Attributes:
        num_queries, num_hits: URLs looked up so far (each redirect is one), and those whose file had not changed.
    """

    def __init__(self, *, spool: Spool, max_bytes: int) -> None:
        self._spool = spool
        self._max_bytes = max_bytes
        self._used_bytes = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self.num_queries = self.num_hits = 0

    @property
    def used_bytes(self) -> int:
        """Bytes of the files that are remembered."""
        return self._used_bytes

    def validators(self, url: str) -> Validators | None:
        """What to ask the server with, if the file is here."""
        self.num_queries += 1
        entry = self._entries.get(_digest(url))
        return entry.validators if entry else None

    async def take(self, url: str) -> SpooledFile | None:
        """A file of the caller's own with the remembered content; None if it is gone."""
        entry = self._entries.get(_digest(url))
        if entry is None:
            return None
        self._entries.move_to_end(_digest(url))
        file = entry.file
        try:
            copy = await self._spool.link(
                file.path, size_bytes=file.size_bytes, sha256=file.sha256, filename=file.filename
            )
        except FileNotFoundError:
            return None
        self.num_hits += 1
        return copy

    async def store(self, url: str, validators: Validators, file: SpooledFile) -> None:
        """Remember a fetched file, if the server told how to recognise it and it fits."""
        await self._drop(_digest(url))
        if not validators.is_usable() or file.size_bytes > self._max_bytes:
            return
        try:
            copy = await self._spool.link(
                file.path, size_bytes=file.size_bytes, sha256=file.sha256, filename=file.filename
            )
        except UnavailableError:  # no space: what is remembered is the first thing to do without
            return
        replaced = self._forget(_digest(url))  # another fetch of the same URL may have come before
        self._entries[_digest(url)] = _Entry(validators=validators, file=copy)
        self._used_bytes += copy.size_bytes
        if replaced is not None:
            await self._spool.remove(replaced.file)
        while self._used_bytes > self._max_bytes:
            await self._drop(next(iter(self._entries)))

    async def _drop(self, key: str) -> None:
        entry = self._forget(key)
        if entry is not None:
            await self._spool.remove(entry.file)

    def _forget(self, key: str) -> _Entry | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._used_bytes -= entry.file.size_bytes
        return entry


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()
