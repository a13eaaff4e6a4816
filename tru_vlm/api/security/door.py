"""The door itself: every request and WebSocket passes its checks, in one order, before any route sees it.

Host, origin, who it is, whether the server stops, how often: each refusal is the one error shape, and nothing of a body
has been read by then.
Routes find who asks with :func:`~tru_vlm.api.security.identity.principal_of`.
"""

from __future__ import annotations

import logging

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tru_vlm.api.error_response import error_response, new_request_id
from tru_vlm.api.security.identity import Identifier, Identity
from tru_vlm.api.security.origins import SAFE_METHODS, OriginCheck
from tru_vlm.api.security.rate_limits import Allowance, RateCounter
from tru_vlm.api.security.slow_bodies import watch_body
from tru_vlm.api.stopping import Drain
from tru_vlm.errors import AuthenticationError, TruError
from tru_vlm.telemetry.exchange import current_exchange

logger = logging.getLogger(__name__)

OPEN_PATHS = frozenset({"/login", "/logout", "/health", "/v1/health", "/v1/health/live", "/v1/health/ready"})
"""What needs no key: signing in, and whether the server is there."""

OPEN_PREFIX = "/static/"
_PAGES = frozenset({"/", "/docs"})
_SEE_OTHER = 303
_COUNTED = frozenset({"POST", "PUT", "DELETE"})
"""What counts as a request; the pieces of an upload (PATCH) and the frames of an answer (GET) do not."""

_WORK = frozenset({"POST", "PUT", "PATCH"})
"""What a server that stops refuses; reading and deleting go on."""


class Door:
    """ASGI middleware.

    Args:
        app: what is behind it.
        origins: hosts and origins that are accepted.
        identifier: tells who asks.
        rates: counts requests.
        drain: tells when the server stops.
        idle_seconds: longest wait for the next bytes of a body.
        max_body_bytes: largest body that any route takes.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        origins: OriginCheck,
        identifier: Identifier,
        rates: RateCounter,
        drain: Drain,
        idle_seconds: float,
        max_body_bytes: int,
    ) -> None:
        self._app = app
        self._origins = origins
        self._identifier = identifier
        self._rates = rates
        self._drain = drain
        self._idle_seconds = idle_seconds
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        try:
            allowance = await self._admit(connection)
        except TruError as error:
            await _refusal(connection, error)(scope, receive, send)
            return
        if scope["type"] == "http":
            receive = watch_body(receive, idle_seconds=self._idle_seconds, max_bytes=self._max_body_bytes)
        await self._app(scope, receive, send if allowance is None else _with_allowance(send, allowance))

    async def _admit(self, connection: HTTPConnection) -> Allowance | None:
        """Every check; the principal is left with the request.

        Raises:
            TruError: if it may not come in.
        """
        scope = connection.scope
        is_socket = scope["type"] == "websocket"
        is_safe = not is_socket and scope["method"] in SAFE_METHODS
        self._origins.check_host(connection.headers)
        if not is_safe:
            self._origins.check_origin(connection, is_required=False)
        if scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_PREFIX):
            return None
        identity = self._identify(connection)
        if exchange := current_exchange():
            exchange.principal = identity.principal.name
        if not is_safe and identity.by_cookie:
            self._origins.check_origin(connection, is_required=True)
        scope.setdefault("state", {})["principal"] = identity.principal
        if is_socket or scope["method"] in _WORK:
            self._drain.check_open()
        if is_socket or scope["method"] not in _COUNTED:  # a socket's requests are counted one by one
            return None
        try:
            return await self._rates.count_request(identity.principal)
        except TruError:
            logger.info("refused %s: too many requests", identity.principal.counted_as)
            raise

    def _identify(self, connection: HTTPConnection) -> Identity:
        try:
            return self._identifier.identify(connection)
        except AuthenticationError as error:
            logger.info("refused a request from %s: %s", connection.client and connection.client.host, error.code)
            raise


def _refusal(connection: HTTPConnection, error: TruError) -> Response:
    """What a refused client reads; a person who is not signed in is led to where one signs in."""
    scope = connection.scope
    wants_page = scope["type"] == "http" and scope["method"] in SAFE_METHODS and scope["path"] in _PAGES
    if wants_page and isinstance(error, AuthenticationError) and "text/html" in connection.headers.get("accept", ""):
        return RedirectResponse("login", _SEE_OTHER)  # relative: also right behind a proxy that adds a prefix
    return error_response(error.info(), new_request_id())


def _with_allowance(send: Send, allowance: Allowance) -> Send:
    """Tell what is left, in the headers that OpenAI's clients know."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-RateLimit-Limit-Requests"] = str(allowance.limit)
            headers["X-RateLimit-Remaining-Requests"] = str(allowance.remaining)
            headers["X-RateLimit-Reset-Requests"] = f"{allowance.reset_seconds:.0f}s"
        await send(message)

    return send_with_headers
