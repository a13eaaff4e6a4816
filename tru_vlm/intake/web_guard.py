"""The guard says where this server may go on the web, and lets a connection go nowhere else.  It sends nothing.

Against server-side request forgery: a URL is parsed once; its host is resolved once; the connection goes to one of the
addresses that were checked, while the Host header, SNI and certificate check keep the name.  No proxy is ever used.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpcore
import httpx

from tru_vlm.errors import FetchError
from tru_vlm.intake.addresses import is_address, is_allowed_address

MAX_URL_CHARACTERS = 8192
MAX_ADDRESSES = 4
WEB_PORTS = (80, 443)
FIRST_USER_PORT, LAST_PORT = 1024, 65535
USER_AGENT = b"tru-vlm/2"

_HOST = re.compile(rb"[a-z0-9_](?:[a-z0-9._-]{0,252})|[0-9a-f:.]{2,45}")
"""Names in ASCII (international ones have become punycode by then) and numeric addresses."""

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to numeric addresses; raises OSError when there are none."""


class WebGuard:
    """One for all that goes out.

    Args:
        allow_private: go to loopback and private addresses too.
        allowed_hosts: when not empty, the only hosts that are gone to; ``"*.example.com"`` takes subdomains.
        resolver: name resolution; the system's by default.
        ssl_context: trust for https; the public certificate authorities by default.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        allowed_hosts: frozenset[str] = frozenset(),
        resolver: Resolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._allow_private = allow_private
        self._allowed_hosts = allowed_hosts
        self._resolve = resolver or SystemResolver()
        self._trust = ssl_context
        logging.getLogger("httpcore").setLevel(logging.INFO)  # its debug lines hold whole URLs, queries included

    def parse(self, text: str, param: str) -> httpx.URL:
        """Text to a checked URL; nobody is asked.

        Raises:
            FetchError: not http(s), with user or password, an odd port, or a host that is not on the list; its code is
                ``url_not_allowed``.
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
            raise _not_allowed("names a host that this server does not go to", param)
        return url

    async def addresses(self, url: httpx.URL, param: str, *, timeout_seconds: float) -> list[str]:
        """The addresses of a URL's host that may be connected to, by the only name resolution there is.

        Raises:
            FetchError: there are none, or none that may be gone to (code ``url_not_allowed``).
        """
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            async with asyncio.timeout(timeout_seconds):
                found = await self._resolve(url.raw_host.decode("ascii"), port)
        except (OSError, UnicodeError, TimeoutError) as error:  # TimeoutError is an OSError; named for the reader
            raise FetchError("The URL's host name could not be resolved.", param=param) from error
        allowed = [item for item in found if is_allowed_address(item, allow_private=self._allow_private)]
        if not allowed:
            raise _not_allowed("leads to an address that this server does not go to", param)
        return allowed[:MAX_ADDRESSES]

    async def connections(self, addresses: Sequence[str]) -> httpcore.AsyncConnectionPool:
        """For one exchange, which goes to one of these addresses whatever host it names."""
        if self._trust is None:
            self._trust = await asyncio.to_thread(_default_ssl_context)  # reads some 200 kB of certificates, once
        return httpcore.AsyncConnectionPool(
            ssl_context=self._trust, max_connections=1, network_backend=_PinnedBackend(addresses)
        )


def target_of(url: httpx.URL) -> httpcore.URL:
    """A checked URL as a connection takes it."""
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


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
        if is_address(host):  # nobody has to be asked
            return [host]
        loop = asyncio.get_running_loop()
        infos = await loop.run_in_executor(self._threads, _getaddrinfo, host, port)
        return list(dict.fromkeys(str(info[4][0]) for info in infos))


def _getaddrinfo(host: str, port: int) -> list[tuple[object, object, object, object, tuple[object, ...]]]:
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def network_failure(error: BaseException, *, before: str) -> str:
    """A fixed text for what went wrong on the network, and before what."""
    if _is_tls_failure(error):
        return "The URL's server did not prove its identity: its certificate or TLS handshake is not valid."
    if isinstance(error, httpcore.ConnectError):
        return "The URL's server could not be reached."
    return f"The connection to the URL's server broke before {before}."


def _is_tls_failure(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


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


def _not_allowed(reason: str, param: str) -> FetchError:
    return FetchError(f"The URL {reason}.", param=param, code="url_not_allowed")
