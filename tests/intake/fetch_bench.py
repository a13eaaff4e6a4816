"""A fetcher to test: with a spool of its own, and a name server that answers from a table."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

import pytest

from tru_vlm.intake import web_guard
from tru_vlm.intake.addresses import is_allowed_address
from tru_vlm.intake.fetch import FetchLimits, UrlFetcher
from tru_vlm.intake.spool import Spool
from tru_vlm.intake.url_cache import UrlCache
from tru_vlm.intake.web_guard import WebGuard

MOVIE = b"movie" * 50_000


class Resolver:
    """Answers from a table and counts."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers) or [["127.0.0.1"]]
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


class Bench:
    """A fetcher with a spool of its own."""

    def __init__(
        self,
        directory: Path,
        *,
        resolver: Resolver | None = None,
        allow_private: bool = True,
        max_bytes: int = 1 << 20,
        total_seconds: float = 60.0,
        idle_seconds: float = 60.0,
        allowed_hosts: frozenset[str] = frozenset(),
        ssl_context: ssl.SSLContext | None = None,
        cache_bytes: int = 0,
    ) -> None:
        self.directory = directory
        self.resolver = resolver or Resolver()
        self.spool = Spool(directory, 1 << 40, 0)
        self.cache = UrlCache(spool=self.spool, max_bytes=cache_bytes) if cache_bytes else None
        self.fetcher = UrlFetcher(
            spool=self.spool,
            limits=FetchLimits(max_bytes=max_bytes, total_seconds=total_seconds, idle_seconds=idle_seconds),
            guard=WebGuard(
                allow_private=allow_private,
                allowed_hosts=allowed_hosts,
                resolver=self.resolver,
                ssl_context=ssl_context,
            ),
            cache=self.cache,
        )

    def leftovers(self) -> list[Path]:
        return [path for path in self.directory.rglob("*") if path.is_file() and path.name != ".lock"]


def pretend_public(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let one loopback address stand for a public one; all others are judged as they are."""
    monkeypatch.setattr(
        web_guard,
        "is_allowed_address",
        lambda text, *, allow_private: text == address or is_allowed_address(text, allow_private=allow_private),
    )
