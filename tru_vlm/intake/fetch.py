"""The fetcher brings one http(s) URL into the spool, and goes nowhere that it must not; it does not read the bytes.

Against server-side request forgery: a URL is parsed once; its host is resolved once; the connection goes to one of the
addresses that were checked, while the Host header, SNI and certificate check keep the name.  Each redirect passes the
same gate.  No proxy, cookie, credential or content encoding is ever used.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import re
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote

import httpcore
import httpx

from tru_vlm.errors import FetchError
from tru_vlm.intake.addresses import is_allowed_address
from tru_vlm.intake.spool import Spool, SpooledFile, too_large
from tru_vlm.intake.url_cache import UrlCache, Validators

logger = logging.getLogger(__name__)

MAX_URL_CHARACTERS = 8192
MAX_ADDRESSES = 4
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
WEB_PORTS = (80, 443)
FIRST_USER_PORT, LAST_PORT = 1024, 65535
USER_AGENT = b"tru-vlm/2"

_HOST = re.compile(rb"[a-z0-9_](?:[a-z0-9._-]{0,252})|[0-9a-f:.]{2,45}")
"""Names in ASCII (international ones have become punycode by then) and numeric addresses."""

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to numeric addresses; raises OSError when there are none."""


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


@dataclass(slots=True)
class _Trust:
    """Certificate authorities, once they are loaded; shared by a fetcher and its copies."""

    context: ssl.SSLContext | None


class UrlFetcher:
    """Fetches URLs into a spool.  One instance serves any number of fetches at once."""

    def __init__(
        self,
        *,
        spool: Spool,
        limits: FetchLimits,
        allow_private: bool = False,
        allowed_hosts: frozenset[str] = frozenset(),
        resolver: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
        cache: UrlCache | None = None,
    ) -> None:
        """Remember how to fetch; nothing is opened.

        Args:
            spool: where files go.
            limits: bounds on one fetch.
            allow_private: fetch from loopback and private addresses too.
            allowed_hosts: when not empty, the only hosts that are fetched from; ``"*.example.com"`` takes subdomains.
            resolver: name resolution; the system's by default.
            ssl_context: trust for https; the public certificate authorities by default.
            cache: remembers files by URL, so that an unchanged one is not fetched twice.
        """
        self._spool = spool
        self._limits = limits
        self._allow_private = allow_private
        self._allowed_hosts = allowed_hosts
        self._resolve = resolver or SystemResolver()
        self._trust = _Trust(ssl_context)
        self._cache = cache
        self._cache_salt = ""
        logging.getLogger("httpcore").setLevel(logging.INFO)  # its debug lines hold whole URLs, queries included

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
        target = self._parse(url, param)
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
        self._parse(url, param)

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
        addresses = await self._addresses(url, param)
        known = self._cache.validators(self._cache_key(url)) if self._cache else None
        try:
            return await self._request(url, addresses, known, param)
        except _CacheMissError:
            return await self._request(url, addresses, None, param)
        except httpcore.TimeoutException as error:
            raise FetchError("The URL's server did not answer in time.", param=param) from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol, OSError) as error:
            logger.info("fetch from %s://%s failed: %s", url.scheme, url.host, type(error).__name__)
            raise FetchError(_failure_text(error), param=param) from error

    async def _request(
        self, url: httpx.URL, addresses: Sequence[str], known: Validators | None, param: str
    ) -> SpooledFile | str:
        limits = self._limits
        timeouts = {"connect": limits.connect_seconds, "read": limits.idle_seconds, "write": limits.idle_seconds}
        pool = httpcore.AsyncConnectionPool(
            ssl_context=await self._tls(), max_connections=1, network_backend=_PinnedBackend(addresses)
        )
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        outcome: SpooledFile | str | None = None
        try:
            async with (
                pool,
                pool.stream("GET", target, headers=_headers(url, known), extensions={"timeout": timeouts}) as response,
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

    def _parse(self, text: str, param: str) -> httpx.URL:
        """Text to a checked URL.

        Raises:
            FetchError: not http(s), with user or password, an odd port, or a host that is not on the list.
        """
        if len(text) > MAX_URL_CHARACTERS:
            raise _not_allowed(f"is longer than {MAX_URL_CHARACTERS} characters", param)
        try:
            url = httpx.URL(text)
            port = url.port
        except (httpx.InvalidURL, ValueError, TypeError) as error:
            raise _not_allowed("is not a well-formed URL", param) from error
        if url.scheme not in ("http", "https"):
            raise _not_allowed("must begin with http:// or https://", param)
        if not _HOST.fullmatch(url.raw_host):
            raise _not_allowed("names no host, or not a well-formed one", param)
        if url.userinfo:
            raise _not_allowed("must not contain a user name or password", param)
        if port is not None and port not in WEB_PORTS and not FIRST_USER_PORT <= port <= LAST_PORT:
            raise _not_allowed("names a port that is neither 80, 443 nor at least 1024", param)
        if self._allowed_hosts and not is_listed_host(url.host, self._allowed_hosts):
            raise _not_allowed("names a host that this server does not fetch from", param)
        return url

    def _join(self, base: httpx.URL, location: str, param: str) -> httpx.URL:
        """The checked target of a redirect."""
        try:
            joined = str(base.join(location))
        except (httpx.InvalidURL, ValueError) as error:
            raise FetchError("The URL redirects to something that is not a URL.", param=param) from error
        return self._parse(joined, param)

    async def _addresses(self, url: httpx.URL, param: str) -> list[str]:
        """The addresses of a URL's host that may be connected to; this is the only name resolution of a hop."""
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            async with asyncio.timeout(self._limits.connect_seconds):
                found = await self._resolve(url.raw_host.decode("ascii"), port)
        except (OSError, UnicodeError, TimeoutError) as error:  # TimeoutError is an OSError; named for the reader
            raise FetchError("The URL's host name could not be resolved.", param=param) from error
        allowed = [item for item in found if is_allowed_address(item, allow_private=self._allow_private)]
        if not allowed:
            raise _not_allowed("leads to an address that this server does not fetch from", param)
        return allowed[:MAX_ADDRESSES]

    async def _tls(self) -> ssl.SSLContext:
        """The trust for https, loaded once (it reads some 200 kB of certificates)."""
        if self._trust.context is None:
            self._trust.context = await self._spool.run(_default_ssl_context)
        return self._trust.context


def is_listed_host(host: str, allowed: frozenset[str]) -> bool:
    """Whether a host is on a list of names and ``*.`` patterns."""
    name = host.lower().rstrip(".")
    parents = name.split(".")
    return name in allowed or any("*." + ".".join(parents[i:]) in allowed for i in range(1, len(parents)))


class SystemResolver:
    """The system's name resolution, in threads of its own: a slow name server must not block other work."""

    def __init__(self, num_threads: int = 8) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="tru-dns")

    async def __call__(self, host: str, port: int) -> list[str]:
        """Numeric addresses of a host, in the system's order of preference; raises OSError."""
        loop = asyncio.get_running_loop()
        infos = await loop.run_in_executor(self._threads, _getaddrinfo, host, port)
        return list(dict.fromkeys(str(info[4][0]) for info in infos))


def _getaddrinfo(host: str, port: int) -> list[tuple[object, object, object, object, tuple[object, ...]]]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


class _CacheMissError(Exception):
    """The server says "not modified", but the file has been evicted meanwhile."""


class _PinnedBackend(httpcore.AsyncNetworkBackend):
    """Connects to the addresses that were checked, whatever host the request names."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - the name has been resolved and checked already
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """The first of the addresses that takes the connection."""
        error: Exception | None = None
        for address in self._addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failure:
                error = failure
        raise error or httpcore.ConnectError("no address")

    async def connect_unix_socket(
        self,
        path: str,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002, ASYNC109
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        """Refused."""
        raise httpcore.ConnectError("unix sockets are not used")

    async def sleep(self, seconds: float) -> None:
        """Wait, as httpcore asks for between retries."""
        await asyncio.sleep(seconds)


def _default_ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


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


def _failure_text(error: BaseException) -> str:
    """A fixed text for what went wrong on the network."""
    if _is_tls_failure(error):
        return "The URL's server did not prove its identity: its certificate or TLS handshake is not valid."
    if isinstance(error, httpcore.ConnectError):
        return "The URL's server could not be reached."
    return "The connection to the URL's server broke before the whole file had come."


def _is_tls_failure(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _not_allowed(reason: str, param: str) -> FetchError:
    return FetchError(f"The URL {reason}.", param=param, code="url_not_allowed")
