"""Sees every exchange from the outside: gives it its id, counts it when it has ended.

The outermost layer, so that it also sees what other layers answer by themselves.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tru_vlm.telemetry import catalogue
from tru_vlm.telemetry.exchange import UNMATCHED, Exchange, begin_exchange
from tru_vlm.telemetry.metrics import Metrics, Reading

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SERVER_ERROR = 500
_CLIENT_CLOSED_REQUEST = 499


class Observation:
    """ASGI middleware.

    Args:
        app: the application.
        metrics: where exchanges are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._num_open = 0
        metrics.read_from(lambda: [Reading(catalogue.HTTP_IN_PROGRESS, self._num_open, {})])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass through, with the id in the answer's header."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        method = scope.get("method", "GET")
        exchange = begin_exchange(
            Headers(scope=scope).get("x-request-id"),
            method if method in _METHODS else "other",
            lambda: _route(scope),
        )
        if scope["type"] == "websocket":  # its questions are counted by themselves
            exchange.is_connection = True
            await self._app(scope, receive, send)
            return

        async def named_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = exchange.request_id
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                self._end(exchange)  # before the client can look at the numbers
            await send(message)

        self._num_open += 1
        try:
            await self._app(scope, receive, named_send)
        except Exception:  # the answer to it is made outside of all layers
            exchange.status = exchange.status or _SERVER_ERROR
            raise
        finally:
            self._end(exchange)

    def _end(self, exchange: Exchange) -> None:
        if exchange.is_over:
            return
        exchange.is_over = True
        self._num_open -= 1
        status = str(exchange.status or _CLIENT_CLOSED_REQUEST)
        self._metrics.count(catalogue.HTTP_REQUESTS, method=exchange.method, route=exchange.route, status=status)
        if exchange.outcome_now() == "rejected" and not exchange.has_question:
            cause = exchange.error.code if exchange.error else f"http_{status}"
            self._metrics.count(catalogue.REJECTIONS, route=exchange.route, cause=cause)


def _route(scope: Scope) -> str:
    """The template of the route that the router has found, never the path; of a mounted application, where it is."""
    return getattr(scope.get("route"), "path", None) or scope.get("root_path") or UNMATCHED
