"""Where a request says that it comes from and goes to: its ``Host`` and ``Origin``.  It knows no keys.

A browser names both truthfully, and a page of another site cannot change them.  So the host keeps out pages that had
their own name point to this machine (DNS rebinding), and the origin those that send forms or open sockets across sites.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from tru_vlm.errors import ForbiddenError, InvalidRequestError
from tru_vlm.intake.fetch import is_listed_host

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class OriginCheck:
    """What is accepted.

    Args:
        hosts: names under which this server is reached, with ``*.`` patterns; ``*`` is any.
        origins: of other pages that may call it.
    """

    def __init__(self, *, hosts: Collection[str], origins: Collection[str]) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origin.lower() for origin in origins)

    def check_host(self, headers: Headers) -> None:
        """Refuse a request for another host.

        Raises:
            InvalidRequestError: code ``host_not_allowed``.
        """
        values = headers.getlist("host")
        name = _host_name(values[0]) if len(values) == 1 else None
        if name is None:
            raise InvalidRequestError("The Host header is missing or malformed.", code="host_not_allowed")
        if "*" not in self._hosts and not is_listed_host(name, self._hosts):
            text = "This server is not reached under the name in the Host header; ALLOWED_HOSTS lists its names."
            raise InvalidRequestError(text, code="host_not_allowed")

    def check_origin(self, connection: HTTPConnection, *, is_required: bool) -> None:
        """Refuse what a page of another site sends.

        Args:
            connection: a request that changes something, or a WebSocket's handshake.
            is_required: whether it must say where it comes from, as browsers do; programs with a key need not.

        Raises:
            ForbiddenError: code ``cross_site``.
        """
        origin = connection.headers.get("origin")
        site = connection.headers.get("sec-fetch-site")
        if origin is not None:
            is_fine = origin.lower() in self._origins or _is_same(origin, connection)
        elif site is not None:
            is_fine = site in ("same-origin", "none")
        else:
            is_fine = not is_required
        if not is_fine:
            text = "It was sent by a page of another site; ALLOWED_ORIGINS lists those that may."
            raise ForbiddenError(text, code="cross_site")


def _host_name(value: str) -> str | None:
    """The name in a Host header, without its port; None if there is none."""
    name, _, port = value.rpartition(":") if not value.endswith("]") else (value, "", "")
    if not name:
        name, port = value, ""
    return name.lower() if name and (not port or port.isdigit()) else None


def _is_same(origin: str, connection: HTTPConnection) -> bool:
    """Whether an origin is this server's own.  Its scheme may differ: a proxy may end TLS before us."""
    try:
        parts = urlsplit(origin.lower())
        came = (parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme))
        host = urlsplit(f"//{connection.headers['host'].lower()}")
        here = (host.hostname, host.port or _DEFAULT_PORTS.get(parts.scheme))
    except (ValueError, KeyError):
        return False
    return parts.scheme in ("http", "https") and came == here
