"""Sees every exchange from the outside: gives it its id, counts, logs and traces it when it has ended.

The outermost layer, so that it also sees what other layers answer by themselves.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tru_vlm.telemetry import catalogue
from tru_vlm.telemetry.access_log import log_exchange
from tru_vlm.telemetry.exchange import UNMATCHED, Exchange, begin_exchange
from tru_vlm.telemetry.metrics import Metrics, Reading
from tru_vlm.telemetry.spans import Tracing

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SERVER_ERROR = 500
_CLIENT_CLOSED_REQUEST = 499
_UNTRACED = ("/v1/health", "/metrics", "/static/")
_HANDSHAKE = {"websocket.accept": 101, "websocket.close": 403}


class Observation:
    """ASGI middleware.

    Args:
        app: the application.
        metrics: where exchanges are counted.
        tracing: of this process.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._num_open = 0
        metrics.read_from(lambda: [Reading(catalogue.HTTP_IN_PROGRESS, self._num_open, {})])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass through, with the id in the answer's header."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        method = scope.get("method", "GET")
        headers = Headers(scope=scope)
        exchange = begin_exchange(
            headers.get("x-request-id"),
            method if method in _METHODS else "other",
            lambda: _route(scope),
        )
        if scope["type"] == "websocket":
            exchange.span = self._tracing.remote(headers)  # each question is a trace, or a part of the client's
            await self._connection(scope, receive, send, exchange)
            return
        if not scope["path"].startswith(_UNTRACED):
            exchange.span = self._tracing.begin(exchange.method, headers, is_server=True)

        async def counted_receive() -> Message:
            message = await receive()
            exchange.received_bytes += len(message.get("body", b""))
            return message

        async def named_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = exchange.request_id
            elif message["type"] == "http.response.body":
                exchange.sent_bytes += len(message.get("body", b""))
                if not message.get("more_body", False):
                    self._end(exchange)  # before the client can look at the numbers
            await send(message)

        self._num_open += 1
        try:
            await self._app(scope, counted_receive, named_send)
        except Exception:  # the answer to it is made outside of all layers
            exchange.status = exchange.status or _SERVER_ERROR
            raise
        finally:
            self._end(exchange)

    async def _connection(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        """A WebSocket: its questions are counted and logged by themselves."""
        exchange.is_connection = True
        exchange.method = "WEBSOCKET"

        async def counted_receive() -> Message:
            message = await receive()
            exchange.received_bytes += _num_bytes(message)
            return message

        async def counted_send(message: Message) -> None:
            kind = message["type"]
            if kind == "websocket.send":
                exchange.sent_bytes += _num_bytes(message)
            elif exchange.status is None:  # the first one answers the handshake
                exchange.status = _HANDSHAKE.get(kind) or message.get("status")
            await send(message)

        try:
            await self._app(scope, counted_receive, counted_send)
        except Exception:
            exchange.status = _SERVER_ERROR
            raise
        finally:
            exchange.is_over = True
            log_exchange(exchange, status=exchange.status or _CLIENT_CLOSED_REQUEST)

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
        log_exchange(exchange, status=int(status))
        exchange.span.end(
            name=f"{exchange.method} {exchange.route}",
            error=status if int(status) >= _SERVER_ERROR else None,
            attributes={
                "http.request.method": exchange.method,
                "http.route": exchange.route,
                "http.response.status_code": exchange.status,
                "tru_vlm.request_id": exchange.request_id,
                "tru_vlm.outcome": exchange.outcome_now(),
            },
        )


def _num_bytes(message: Message) -> int:
    """The payload of a WebSocket's message; of text its characters, which is all but the same and costs no copy."""
    return len(message.get("text") or message.get("bytes") or "")


def _route(scope: Scope) -> str:
    """The template of the route that the router has found, never the path; of a mounted application, where it is."""
    return getattr(scope.get("route"), "path", None) or scope.get("root_path") or UNMATCHED
