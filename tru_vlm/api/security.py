"""Who may use the server.  It knows the settings and the request's headers, and nothing of what is asked."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from tru_vlm.errors import ForbiddenError
from tru_vlm.settings import Settings

_DEFAULT_PORTS = {"http": 80, "https": 443}


def check_socket(connection: HTTPConnection, settings: Settings) -> None:
    """Whether a WebSocket may be opened: browsers let any site's page try, and only say which one it is.

    A client that names no origin is no browser, and is let in.

    Args:
        connection: the request to upgrade.
        settings: the server's configuration.

    Raises:
        ForbiddenError: the page is another site's, and not among ``ALLOWED_ORIGINS``.
    """
    allowed = {_place(origin) for origin in map(str.strip, settings.allowed_origins.split(",")) if origin}
    for origin in connection.headers.getlist("origin"):
        if not _is_own(origin, connection.headers.get("host", "")) and _place(origin) not in allowed:
            raise ForbiddenError(
                "Pages of another site may not use this server; its operator can add the site to ALLOWED_ORIGINS.",
                code="origin_not_allowed",
            )


def _is_own(origin: str, host: str) -> bool:
    """Whether a page's origin is where this request was sent to.

    The scheme does not count: behind a proxy that ends TLS, this server does not know which one the page was had by.
    """
    place = _place(origin)
    return place is not None and place == _place(f"{place[0]}://{host}")


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
