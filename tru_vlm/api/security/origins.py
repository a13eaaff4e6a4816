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
from tru_vlm.intake.web_guard import is_listed_host

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS = {"http": 80, "https": 443}


class OriginCheck:
    """What is accepted.

    Args:
        hosts: names under which this server is reached, with ``*.`` patterns; ``*`` is any.
        origins: of other pages that may call it.
    """

    def __init__(self, *, hosts: Collection[str], origins: Collection[str]) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(_place(origin) for origin in origins)

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
            ForbiddenError: code ``origin_not_allowed``.
        """
        origins = connection.headers.getlist("origin")
        site = connection.headers.get("sec-fetch-site")
        if origins:
            is_fine = all(self._is_allowed(origin, connection) for origin in origins)
        elif site is not None:
            is_fine = site in ("same-origin", "none")
        else:
            is_fine = not is_required
        if not is_fine:
            raise ForbiddenError(
                "Pages of another site may not use this server; its operator can add the site to ALLOWED_ORIGINS.",
                code="origin_not_allowed",
            )

    def _is_allowed(self, origin: str, connection: HTTPConnection) -> bool:
        """Whether an origin is this server's own, or listed.  The own one's scheme may differ: a proxy may end TLS."""
        place = _place(origin)
        if place is None:
            return False
        return place in self._origins or place == _place(f"{place[0]}://{connection.headers.get('host', '')}")


def _host_name(value: str) -> str | None:
    """The name in a Host header, without its port; None if there is none."""
    name, _, port = value.rpartition(":") if not value.endswith("]") else (value, "", "")
    if not name:
        name, port = value, ""
    return name.lower() if name and (not port or port.isdigit()) else None


def _place(origin: str) -> tuple[str, str, int] | None:
    """Scheme, host and port of an origin (RFC 6454); None for one without them, which "null" is."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme]
