"""The fetcher brings one http(s) URL into the spool, and goes nowhere that it must not; it does not read the bytes.

Each redirect passes the same guard (:mod:`tru_vlm.intake.web_guard`).  No cookie, credential or content encoding is
ever used.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote

import httpcore
import httpx

from tru_vlm.errors import FetchError
from tru_vlm.intake.spool import Spool, SpooledFile, too_large
from tru_vlm.intake.url_cache import UrlCache, Validators
from tru_vlm.intake.web_guard import USER_AGENT, WebGuard, network_failure, target_of

logger = logging.getLogger(__name__)

REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds on one fetch.

    Attributes:
        max_bytes: most bytes of the file.
        total_seconds: wall clock over everything, redirects included.
        connect_seconds: for resolving, connecting and the TLS handshake, each.
        idle_seconds: longest wait for the next bytes.
        max_redirects: redirects that are followed.
    """

    max_bytes: int
    total_seconds: float = 120.0
    connect_seconds: float = 10.0
    idle_seconds: float = 30.0
    max_redirects: int = 3


class UrlFetcher:
    """Fetches URLs into a spool.  One instance serves any number of fetches at once."""

    def __init__(
        self,
        *,
        spool: Spool,
        limits: FetchLimits,
        guard: WebGuard,
        cache: UrlCache | None = None,
    ) -> None:
        """Remember how to fetch; nothing is opened.

        Args:
            spool: where files go.
            limits: bounds on one fetch.
            guard: says where from.
            cache: remembers files by URL, so that an unchanged one is not fetched twice.
        """
        self._spool = spool
        self._limits = limits
        self._guard = guard
        self._cache = cache
        self._cache_salt = ""

    def salted(self, cache_salt: str) -> UrlFetcher:
        """The same fetcher, finding in the cache only what was fetched under the same salt."""
        other = copy.copy(self)
        other._cache_salt = cache_salt  # noqa: SLF001 - of this very class
        return other

    async def fetch(self, url: str, *, param: str = "video_url") -> SpooledFile:
        """The file at a URL, in the spool; it belongs to the caller.

        Args:
            url: http or https.
            param: the request's field that errors name.

        Raises:
            FetchError: the URL is not allowed (code ``url_not_allowed``) or could not be fetched.
            PayloadTooLargeError: more bytes than the limit, announced or sent.
            UnavailableError: no disk space.
        """
        target = self._guard.parse(url, param)
        try:
            async with asyncio.timeout(self._limits.total_seconds):
                return await self._follow(target, param)
        except TimeoutError as error:
            text = f"The URL could not be fetched within {self._limits.total_seconds:g} seconds."
            raise FetchError(text, param=param) from error

    def check(self, url: str, *, param: str = "video_url") -> None:
        """Refuse a URL that would never be fetched, as far as can be told without asking anybody.

        Raises:
            FetchError: as :meth:`fetch`.
        """
        self._guard.parse(url, param)

    async def _follow(self, url: httpx.URL, param: str) -> SpooledFile:
        """Fetch, following redirects; each hop is checked as the first was."""
        for _ in range(self._limits.max_redirects + 1):
            outcome = await self._hop(url, param)
            if isinstance(outcome, SpooledFile):
                return outcome
            url = self._join(url, outcome, param)
        raise FetchError(f"The URL redirects more than {self._limits.max_redirects} times.", param=param)

    async def _hop(self, url: httpx.URL, param: str) -> SpooledFile | str:
        """One request: the file, or where the server redirects to."""
        addresses = await self._guard.addresses(url, param, timeout_seconds=self._limits.connect_seconds)
        known = self._cache.validators(self._cache_key(url)) if self._cache else None
        try:
            return await self._request(url, addresses, known, param)
        except _CacheMissError:
            return await self._request(url, addresses, None, param)
        except httpcore.TimeoutException as error:
            raise FetchError("The URL's server did not answer in time.", param=param) from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol, OSError) as error:
            logger.info("fetch from %s://%s failed: %s", url.scheme, url.host, type(error).__name__)
            raise FetchError(network_failure(error, before="the whole file had come"), param=param) from error

    async def _request(
        self, url: httpx.URL, addresses: Sequence[str], known: Validators | None, param: str
    ) -> SpooledFile | str:
        limits = self._limits
        timeouts = {"connect": limits.connect_seconds, "read": limits.idle_seconds, "write": limits.idle_seconds}
        pool = await self._guard.connections(addresses)
        outcome: SpooledFile | str | None = None
        try:
            async with (
                pool,
                pool.stream(
                    "GET", target_of(url), headers=_headers(url, known), extensions={"timeout": timeouts}
                ) as response,
            ):
                outcome = await self._outcome(url, response, known, param)
        except BaseException:  # while the connection was closed: the file is nobody's yet
            if isinstance(outcome, SpooledFile):
                await self._spool.remove(outcome)
            raise
        return outcome

    async def _outcome(
        self, url: httpx.URL, response: httpcore.Response, known: Validators | None, param: str
    ) -> SpooledFile | str:
        """What an answer means: the file, or where it redirects to."""
        if response.status in REDIRECT_STATUSES:
            return _location(response, param)
        if response.status == HTTPStatus.NOT_MODIFIED and known is not None and self._cache is not None:
            return await self._reuse(url, self._cache)
        return await self._download(url, response, param)

    async def _reuse(self, url: httpx.URL, cache: UrlCache) -> SpooledFile:
        file = await cache.take(self._cache_key(url))
        if file is None:
            raise _CacheMissError
        return file

    async def _download(self, url: httpx.URL, response: httpcore.Response, param: str) -> SpooledFile:
        """Stream an answer's body into the spool."""
        if response.status != HTTPStatus.OK:
            raise FetchError(f"The URL's server answered with status {response.status}.", param=param)
        if _header(response, b"content-encoding").lower() not in (b"", b"identity"):
            raise FetchError("The URL's server sent compressed content, which was not asked for.", param=param)
        length = _header(response, b"content-length")
        if length.isdigit() and int(length) > self._limits.max_bytes:
            raise too_large(self._limits.max_bytes, param=param)
        async with aclosing(_body(response)) as chunks:
            file = await self._spool.write(
                chunks, filename=_filename(url), max_bytes=self._limits.max_bytes, param=param
            )
        await self._remember(url, response, file)
        return file

    async def _remember(self, url: httpx.URL, response: httpcore.Response, file: SpooledFile) -> None:
        if self._cache is None:
            return
        validators = Validators(etag=_header(response, b"etag"), last_modified=_header(response, b"last-modified"))
        try:
            await self._cache.store(self._cache_key(url), validators, file)
        except BaseException:
            await self._spool.remove(file)
            raise

    def _cache_key(self, url: httpx.URL) -> str:
        return f"{self._cache_salt} {url}"

    def _join(self, base: httpx.URL, location: str, param: str) -> httpx.URL:
        """The checked target of a redirect."""
        try:
            joined = str(base.join(location))
        except (httpx.InvalidURL, ValueError) as error:
            raise FetchError("The URL redirects to something that is not a URL.", param=param) from error
        return self._guard.parse(joined, param)


class _CacheMissError(Exception):
    """The server says "not modified", but the file has been evicted meanwhile."""


def _headers(url: httpx.URL, known: Validators | None) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"Host", url.netloc),
        (b"User-Agent", USER_AGENT),
        (b"Accept", b"video/*, image/*, */*;q=0.5"),
        (b"Accept-Encoding", b"identity"),
        (b"Connection", b"close"),
    ]
    return headers + (known.request_headers() if known else [])


def _header(response: httpcore.Response, name: bytes) -> bytes:
    return next((value for key, value in response.headers if key.lower() == name), b"").strip()


def _location(response: httpcore.Response, param: str) -> str:
    location = _header(response, b"location")
    if not location:
        raise FetchError("The URL redirects without saying where to.", param=param)
    return location.decode("latin-1")


async def _body(response: httpcore.Response) -> AsyncGenerator[bytes, None]:
    async for chunk in response.aiter_stream():
        yield chunk


def _filename(url: httpx.URL) -> str:
    return unquote(url.path.rsplit("/", 1)[-1])
