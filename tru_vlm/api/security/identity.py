"""Who asks: from a key, a session, or an address where nobody needs a key.  Where routes get their principal."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace

from starlette.requests import HTTPConnection

from tru_vlm.api.keys import Keyring
from tru_vlm.api.security.sessions import Sessions
from tru_vlm.errors import AuthenticationError
from tru_vlm.principal import ANONYMOUS, Principal, RateLimits

MAX_KEY_CHARACTERS = 512
_IPV6_NETWORK_BITS = 64


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks, and whether a browser said so by itself, as it does with cookies."""

    principal: Principal
    by_cookie: bool = False


class Identifier:
    """Tells who asks.

    Args:
        keyring: all keys; without any, everybody is anonymous.
        sessions: of browsers that signed in.
        limits: of anonymous clients, for each address.
    """

    def __init__(self, keyring: Keyring, sessions: Sessions, limits: RateLimits) -> None:
        self.keyring = keyring
        self._sessions = sessions
        self._anonymous = replace(ANONYMOUS, limits=limits)

    def identify(self, connection: HTTPConnection) -> Identity:
        """Who asks.

        Raises:
            AuthenticationError: if a key is needed and no valid one came.
        """
        if not self.keyring:
            return Identity(replace(self._anonymous, counted_as=f"address:{client_network(connection)}"))
        key = _presented_key(connection)
        if key is not None:
            entry = self.keyring.find(key) if len(key) <= MAX_KEY_CHARACTERS else None
            if entry is None:
                raise AuthenticationError("The API key is not known to this server.")
            return Identity(entry.principal)
        principal = self._sessions.principal(connection)
        if principal is None:
            raise AuthenticationError(
                "An API key is needed: as 'Authorization: Bearer KEY' or 'X-API-Key: KEY', or sign in at /login.",
                code="missing_api_key",
            )
        return Identity(principal, by_cookie=True)


def principal_of(connection: HTTPConnection) -> Principal:
    """Who asks, as the door found out; every request and WebSocket that reaches a route has passed it."""
    principal = connection.scope["state"]["principal"]
    assert isinstance(principal, Principal)  # noqa: S101 - the door's own
    return principal


def client_network(connection: HTTPConnection) -> str:
    """The client's address; of IPv6 the network, since whoever has one address there has 2^64."""
    host = connection.client.host if connection.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host or "unknown"
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _IPV6_NETWORK_BITS), strict=False))


def _presented_key(connection: HTTPConnection) -> str | None:
    """The key in a request's headers; None if there is none."""
    scheme, _, value = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    return connection.headers.get("x-api-key")
